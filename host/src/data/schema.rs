//! Message types in the form that the walkers want: flat tables without reference counts or locks.
//!
//! The descriptors of `prost-reflect` share one pool, and asking a field for its type clones a handle of it. That is a
//! contended counter once many queries run, so that what the walkers need is copied out once.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, MessageDescriptor};

use super::wire::{Field as WireField, Fields, Payload, WireError};

/// All message types.
#[derive(Default)]
pub(super) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    by_name: HashMap<String, MessageId>,
}

/// Names a message of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageId(usize);

/// Names an enum of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EnumId(usize);

/// A message type.
pub(super) struct Message {
    /// The descriptor, for whoever needs the whole message.
    pub descriptor: MessageDescriptor,
    /// What sort of message it is.
    pub form: Form,
    /// True where a string can be found in it, however deep.
    pub has_strings: bool,
    /// Ascending by number.
    fields: Vec<Field>,
    /// Places in `fields`, by proto name and by JSON name.
    by_name: HashMap<String, usize>,
}

/// Which messages stand for something else than their fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Most messages.
    Plain,
    /// The entry of a map: field 1 is the key, field 2 the value.
    MapEntry,
    Any,
    Struct,
    Value,
    ListValue,
    Timestamp,
    Duration,
    /// `google.protobuf.StringValue` and its like, which have one field.
    Wrapper,
}

/// A field of a message.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub number: u32,
    pub name: String,
    pub kind: Kind,
    pub shape: Shape,
    /// True where "not set" differs from "has its default".
    pub presence: bool,
    /// The oneof that it belongs to.
    pub oneof: Option<usize>,
}

/// How often a field occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Singular,
    List,
    Map,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Float,
    Double,
    String,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
}

/// An enum type.
struct Enum {
    /// Names by number; of aliases the first.
    names: HashMap<i32, String>,
    /// The number of the first value.
    default: i32,
}

impl Schema {
    /// The types of a pool.
    pub(super) fn of(pool: &DescriptorPool) -> Self {
        let enum_ids: HashMap<String, EnumId> = pool
            .all_enums()
            .enumerate()
            .map(|(index, descriptor)| (descriptor.full_name().to_owned(), EnumId(index)))
            .collect();
        let by_name: HashMap<String, MessageId> = pool
            .all_messages()
            .enumerate()
            .map(|(index, descriptor)| (descriptor.full_name().to_owned(), MessageId(index)))
            .collect();
        let enums = pool.all_enums().map(|descriptor| Enum::of(&descriptor)).collect();
        let messages = pool
            .all_messages()
            .map(|descriptor| Message::of(descriptor, &by_name, &enum_ids))
            .collect();
        let mut schema = Self {
            messages,
            enums,
            by_name,
        };
        schema.mark_strings();
        schema
    }

    /// How many message types there are.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Finds a message by its full name.
    pub(super) fn find(&self, full_name: &str) -> Option<(MessageId, &Message)> {
        let id = *self.by_name.get(full_name)?;
        Some((id, self.messages.get(id.0)?))
    }

    /// The message with this id; none only for an id of another schema.
    pub(super) fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.get(id.0)
    }

    /// The name of an enum's value, or its number where it has none.
    pub(super) fn enum_text(&self, id: EnumId, number: i32) -> String {
        self.enums
            .get(id.0)
            .and_then(|values| values.names.get(&number).cloned())
            .unwrap_or_else(|| number.to_string())
    }

    /// The name of an enum's first value.
    pub(super) fn enum_default(&self, id: EnumId) -> String {
        self.enum_text(id, self.enums.get(id.0).map_or(0, |values| values.default))
    }

    /// Finds the messages that can hold strings: those that hold one themselves, then those that hold such messages,
    /// until there are no more.
    fn mark_strings(&mut self) {
        loop {
            let found: Vec<usize> = self
                .messages
                .iter()
                .enumerate()
                .filter(|(_, message)| !message.has_strings)
                .filter(|(_, message)| message.fields.iter().any(|field| self.has_strings(message, field)))
                .map(|(index, _)| index)
                .collect();
            if found.is_empty() {
                return;
            }
            for index in found {
                if let Some(message) = self.messages.get_mut(index) {
                    message.has_strings = true;
                }
            }
        }
    }

    /// True where a text query looks into a field.
    pub(super) fn has_strings(&self, message: &Message, field: &Field) -> bool {
        if message.form == Form::MapEntry && field.number == 1 {
            return false;
        }
        match field.kind {
            Kind::String => true,
            Kind::Message(id) => self.message(id).is_some_and(|message| message.has_strings),
            _ => false,
        }
    }
}

impl Message {
    fn of(
        descriptor: MessageDescriptor,
        messages: &HashMap<String, MessageId>,
        enums: &HashMap<String, EnumId>,
    ) -> Self {
        let mut fields: Vec<(Field, String)> = descriptor
            .fields()
            .filter_map(|field| Some((Field::of(&field, messages, enums)?, field.json_name().to_owned())))
            .collect();
        fields.sort_by_key(|(field, _)| field.number);
        let mut by_name: HashMap<String, usize> = fields
            .iter()
            .enumerate()
            .map(|(index, (field, _))| (field.name.clone(), index))
            .collect();
        for (index, (_, json_name)) in fields.iter().enumerate() {
            by_name.entry(json_name.clone()).or_insert(index);
        }
        Self {
            form: Form::of(&descriptor),
            has_strings: false,
            fields: fields.into_iter().map(|(field, _)| field).collect(),
            by_name,
            descriptor,
        }
    }

    /// The field with this number.
    #[inline]
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        let index = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        self.fields.get(index)
    }

    /// The field with this proto name or JSON name.
    pub(super) fn field_by_name(&self, name: &str) -> Option<&Field> {
        self.fields.get(*self.by_name.get(name)?)
    }

    /// The field with this proto name.
    pub(super) fn field_by_proto_name(&self, name: &str) -> Option<&Field> {
        self.field_by_name(name).filter(|field| field.name == name)
    }

    /// The fields of a oneof.
    pub(super) fn oneof_fields(&self, oneof: usize) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| field.oneof == Some(oneof))
    }

    /// The occurrences of a field in an encoded message that count: those of its wire type, after the last occurrence of
    /// another field of the same oneof.
    pub(super) fn occurrences<'a>(&self, field: &Field, bytes: &'a [u8]) -> Result<Vec<WireField<'a>>, WireError> {
        let mut found = Vec::new();
        for occurrence in Fields::of(bytes) {
            let occurrence = occurrence?;
            if occurrence.number == field.number {
                if field.takes(&occurrence.payload) {
                    found.push(occurrence);
                }
            } else if field.oneof.is_some()
                && !found.is_empty()
                && let Some(other) = self.field(occurrence.number)
                && other.oneof == field.oneof
                && other.takes(&occurrence.payload)
            {
                found.clear();
            }
        }
        Ok(found)
    }
}

impl Form {
    fn of(descriptor: &MessageDescriptor) -> Self {
        if descriptor.is_map_entry() {
            return Self::MapEntry;
        }
        match descriptor.full_name() {
            "google.protobuf.Any" => Self::Any,
            "google.protobuf.Struct" => Self::Struct,
            "google.protobuf.Value" => Self::Value,
            "google.protobuf.ListValue" => Self::ListValue,
            "google.protobuf.Timestamp" => Self::Timestamp,
            "google.protobuf.Duration" => Self::Duration,
            "google.protobuf.BoolValue"
            | "google.protobuf.BytesValue"
            | "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int32Value"
            | "google.protobuf.Int64Value"
            | "google.protobuf.StringValue"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.UInt64Value" => Self::Wrapper,
            _ => Self::Plain,
        }
    }
}

impl Field {
    /// None for a group, which then is an unknown field: it is kept, but not looked into.
    fn of(
        descriptor: &FieldDescriptor,
        messages: &HashMap<String, MessageId>,
        enums: &HashMap<String, EnumId>,
    ) -> Option<Self> {
        use prost_reflect::Kind as Reflected;
        if descriptor.is_group() {
            return None;
        }
        let kind = match descriptor.kind() {
            Reflected::Bool => Kind::Bool,
            Reflected::Int32 => Kind::Int32,
            Reflected::Int64 => Kind::Int64,
            Reflected::Uint32 => Kind::Uint32,
            Reflected::Uint64 => Kind::Uint64,
            Reflected::Sint32 => Kind::Sint32,
            Reflected::Sint64 => Kind::Sint64,
            Reflected::Fixed32 => Kind::Fixed32,
            Reflected::Fixed64 => Kind::Fixed64,
            Reflected::Sfixed32 => Kind::Sfixed32,
            Reflected::Sfixed64 => Kind::Sfixed64,
            Reflected::Float => Kind::Float,
            Reflected::Double => Kind::Double,
            Reflected::String => Kind::String,
            Reflected::Bytes => Kind::Bytes,
            Reflected::Enum(descriptor) => Kind::Enum(*enums.get(descriptor.full_name())?),
            Reflected::Message(descriptor) => Kind::Message(*messages.get(descriptor.full_name())?),
        };
        let shape = if descriptor.is_map() {
            Shape::Map
        } else if descriptor.is_list() {
            Shape::List
        } else {
            Shape::Singular
        };
        Some(Self {
            number: descriptor.number(),
            name: descriptor.name().to_owned(),
            kind,
            shape,
            presence: descriptor.supports_presence(),
            oneof: descriptor
                .containing_oneof()
                .and_then(|oneof| descriptor.parent_message().oneofs().position(|other| other == oneof)),
        })
    }

    /// True where the payload has the field's wire type; otherwise the occurrence is one of an unknown field.
    #[inline]
    pub(super) fn takes(&self, payload: &Payload<'_>) -> bool {
        self.kind.takes(payload)
            || (self.shape == Shape::List && self.kind.is_packable() && matches!(payload, Payload::Bytes(_)))
    }
}

impl Kind {
    fn takes(self, payload: &Payload<'_>) -> bool {
        match self {
            Self::Bool
            | Self::Int32
            | Self::Int64
            | Self::Uint32
            | Self::Uint64
            | Self::Sint32
            | Self::Sint64
            | Self::Enum(_) => matches!(payload, Payload::Varint(_)),
            Self::Fixed32 | Self::Sfixed32 | Self::Float => matches!(payload, Payload::Fixed32(_)),
            Self::Fixed64 | Self::Sfixed64 | Self::Double => matches!(payload, Payload::Fixed64(_)),
            Self::String | Self::Bytes | Self::Message(_) => matches!(payload, Payload::Bytes(_)),
        }
    }

    /// True for numbers, which a list may hold packed into one payload.
    pub(super) fn is_packable(self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Message(_))
    }
}

impl Enum {
    fn of(descriptor: &EnumDescriptor) -> Self {
        let mut names = HashMap::new();
        for value in descriptor.values() {
            names.entry(value.number()).or_insert_with(|| value.name().to_owned());
        }
        Self {
            names,
            default: descriptor.default_value().number(),
        }
    }
}
