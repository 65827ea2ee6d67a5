//! Message types and random messages for the tests of this module and of the filter.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

use super::Descriptors;

/// One message with every kind of field, and one of a session's shape.
const PROTO: &str = r#"
syntax = "proto3";
package test;

import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";

enum Color { RED = 0; GREEN = 1; BLUE = 2; }

message Everything {
  bool flag = 1;
  int32 int32_field = 2;
  int64 int64_field = 3;
  uint32 uint32_field = 4;
  uint64 uint64_field = 5;
  sint32 sint32_field = 6;
  sint64 sint64_field = 7;
  fixed32 fixed32_field = 8;
  fixed64 fixed64_field = 9;
  sfixed32 sfixed32_field = 10;
  sfixed64 sfixed64_field = 11;
  float float_field = 12;
  double double_field = 13;
  string text = 14;
  bytes data = 15;
  Color color = 16;
  Everything child = 20;
  google.protobuf.Timestamp at = 21;
  google.protobuf.Duration lasts = 22;
  google.protobuf.StringValue wrapped_text = 23;
  google.protobuf.Int64Value wrapped_number = 24;
  google.protobuf.Struct json = 25;
  google.protobuf.Value value = 26;
  google.protobuf.ListValue list = 27;
  google.protobuf.Any any = 28;
  optional string maybe_text = 30;
  optional int32 maybe_number = 31;
  repeated string texts = 40;
  repeated int32 numbers = 41;
  repeated int32 unpacked = 42 [packed = false];
  repeated Everything children = 43;
  repeated Color colors = 44;
  repeated double doubles = 45;
  map<string, string> labels = 50;
  map<string, google.protobuf.ListValue> claims = 51;
  map<int32, Everything> by_number = 52;
  map<bool, sint64> by_flag = 53;
  oneof choice {
    string chosen_text = 60;
    int32 chosen_number = 61;
    Everything chosen_child = 62;
    Everything chosen_tree = 63;
  }
}

message Session {
  message IdToken {
    string issuer = 1;
    string subject = 2;
    google.protobuf.Timestamp expires_at = 3;
    google.protobuf.Timestamp issued_at = 4;
    string raw = 5;
  }
  message OAuthToken {
    string access_token = 1;
    string token_type = 2;
    google.protobuf.Timestamp expires_at = 3;
    string refresh_token = 4;
  }
  string version = 1;
  string id = 2;
  string user_id = 3;
  google.protobuf.Timestamp expires_at = 4;
  IdToken id_token = 6;
  OAuthToken oauth_token = 7;
  map<string, google.protobuf.ListValue> claims = 9;
  repeated string audience = 10;
  google.protobuf.Timestamp issued_at = 14;
  optional string impersonate_session_id = 15;
  google.protobuf.Timestamp accessed_at = 18;
  bool refresh_disabled = 19;
  string idp_id = 20;
}
"#;

/// The encoded `FileDescriptorSet` of the test messages, imports included.
pub(crate) fn descriptor_set() -> Vec<u8> {
    struct Source;
    impl protox::file::FileResolver for Source {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            match name {
                "test.proto" => protox::file::File::from_source(name, PROTO),
                _ => protox::file::GoogleFileResolver::new().open_file(name),
            }
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Source);
    compiler.include_imports(true);
    compiler.open_file("test.proto").unwrap();
    compiler.file_descriptor_set().encode_to_vec()
}

/// The built-in types and the test messages.
pub(crate) fn descriptors() -> &'static Descriptors {
    static DESCRIPTORS: std::sync::LazyLock<Descriptors> =
        std::sync::LazyLock::new(|| Descriptors::built_in().with_additional(&descriptor_set()).unwrap());
    &DESCRIPTORS
}

/// The same types for models to decode with.
pub(crate) fn pool() -> &'static DescriptorPool {
    static POOL: std::sync::LazyLock<DescriptorPool> =
        std::sync::LazyLock::new(|| DescriptorPool::decode(&descriptor_set()[..]).unwrap());
    &POOL
}

pub(crate) fn message_type(name: &str) -> MessageDescriptor {
    pool().get_message_by_name(name).unwrap()
}

/// Record data with this message, given by its full name and JSON.
pub(crate) fn data(name: &str, json: serde_json::Value) -> Vec<u8> {
    let message = DynamicMessage::deserialize(message_type(name), json).unwrap();
    wrap(name, message.encode_to_vec())
}

/// Record data with this encoded message.
pub(crate) fn wrap(name: &str, value: Vec<u8>) -> Vec<u8> {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value,
    }
    .encode_to_vec()
}

/// Random choices out of random bytes, so that a test framework that shrinks bytes shrinks messages. When they run out,
/// every choice is the simplest.
pub(crate) struct Entropy<'a>(&'a [u8]);

const TEXTS: [&str; 10] = [
    "",
    "a",
    "b",
    "Ab",
    "ÄB",
    "x.y",
    "10",
    "9.5",
    "2025-01-31T12:00:00Z",
    "longer Text",
];

impl<'a> Entropy<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn below(&mut self, bound: u8) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first % bound
            }
            None => 0,
        }
    }

    pub(crate) fn text(&mut self) -> String {
        TEXTS[usize::from(self.below(10))].to_owned()
    }

    fn integer(&mut self) -> i64 {
        [0, 1, -1, 10, 1_500_000, i64::MAX, i64::MIN][usize::from(self.below(7))]
    }

    /// A message of this type with a few of its fields.
    pub(crate) fn message(&mut self, descriptor: &MessageDescriptor, depth: u8) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        match descriptor.full_name() {
            // Only times, spans and values that JSON can say.
            "google.protobuf.Timestamp" | "google.protobuf.Duration" => {
                message.set_field_by_number(1, Value::I64(i64::from(self.below(200)) * 1_000_003));
                message.set_field_by_number(2, Value::I32([0, 500_000_000, 1_000, 7][usize::from(self.below(4))]));
                return message;
            }
            "google.protobuf.Any" => {
                // Never empty, so that of two merged ones the second replaces both the type and the value of the first.
                let mut inner = self.inner(depth);
                if inner.encoded_len() == 0 {
                    inner = DynamicMessage::new(message_type("google.protobuf.StringValue"));
                    inner.set_field_by_number(1, Value::String("a".to_owned()));
                }
                message.set_field_by_number(1, Value::String(format!("x/{}", inner.descriptor().full_name())));
                message.set_field_by_number(2, Value::Bytes(inner.encode_to_vec().into()));
                return message;
            }
            "google.protobuf.Value" => {
                let choice = if depth == 0 { self.below(4) } else { self.below(6) };
                let number = u32::from(choice) + 1;
                let field = descriptor.get_field(number).unwrap();
                let value = match choice {
                    0 => Value::EnumNumber(0),
                    1 => Value::F64([0.0, 1.5, 1e6, -3.0][usize::from(self.below(4))]),
                    _ => self.single(&field.kind(), depth),
                };
                message.set_field(&field, value);
                return message;
            }
            _ => {}
        }
        let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
        let count = if fields.len() > 3 { self.below(8) } else { 3 };
        for _ in 0..count {
            let field = &fields[usize::from(self.below(u8::try_from(fields.len()).unwrap()))];
            if depth == 0 && matches!(field.kind(), Kind::Message(_)) && !field.is_map() {
                continue;
            }
            let value = self.field(field, depth);
            message.set_field(field, value);
        }
        message
    }

    fn inner(&mut self, depth: u8) -> DynamicMessage {
        let name = [
            "test.Everything",
            "google.protobuf.Struct",
            "google.protobuf.StringValue",
        ][usize::from(self.below(3))];
        self.message(&message_type(name), depth.saturating_sub(1))
    }

    fn field(&mut self, field: &FieldDescriptor, depth: u8) -> Value {
        if field.is_list() {
            return Value::List((0..self.below(4)).map(|_| self.single(&field.kind(), depth)).collect());
        }
        if !field.is_map() {
            return self.single(&field.kind(), depth);
        }
        let kind = field.kind();
        let entry = kind.as_message().unwrap();
        let value_kind = entry.map_entry_value_field().kind();
        let mut map = std::collections::HashMap::new();
        if depth > 0 || value_kind.as_message().is_none() {
            for _ in 0..self.below(4) {
                let key = match entry.map_entry_key_field().kind() {
                    Kind::String => MapKey::String(self.text()),
                    Kind::Bool => MapKey::Bool(self.below(2) == 1),
                    _ => MapKey::I32(i32::from(self.below(3))),
                };
                let value = self.single(&value_kind, depth);
                map.insert(key, value);
            }
        }
        Value::Map(map)
    }

    fn single(&mut self, kind: &Kind, depth: u8) -> Value {
        match kind {
            Kind::Bool => Value::Bool(self.below(2) == 1),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.integer() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.integer()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.integer() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.integer() as u64),
            Kind::Float => Value::F32(f32::from(self.below(4)) * 0.75),
            Kind::Double => Value::F64(f64::from(self.below(4)) * 333_333.25),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Kind::Enum(_) => Value::EnumNumber(i32::from(self.below(4))),
            Kind::Message(descriptor) => Value::Message(self.message(descriptor, depth.saturating_sub(1))),
        }
    }
}
