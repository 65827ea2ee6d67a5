//! What a server may say, for statements of somebody who is not trusted: a bound on it at once, and on the types that it speaks of.
//!
//! A row is one message, and the library that speaks Postgres' protocol makes room for all of a message once it has read its
//! length, up to 1 GiB, before anybody here can refuse it. So the messages are followed on their way through a `pipe`. Each is a
//! byte that says its kind, a length of four bytes that counts itself, and the rest. Where one says that it is longer than it
//! may be, nothing of it is passed on. In its place the client is told so by an error in the form of the server's, which ends
//! the connection; its code tells the pool that the server is well.
//!
//! A type that the library does not know it asks the server about, and then about all that this one is made of. It keeps each in
//! the connection, nested as in the database, and whoever has made types of types by the thousand ends the process by the stack that
//! letting go of them takes. So a description of columns or parameters is held until all of it is there, and one with a type that
//! was made in this database is refused in the same way. No value of such a type could be read anyway.
//!
//! The beginning of a copy is refused, too. The library does not expect one and takes it for a server that is out of step, where it is
//! the statement that asks for what is not supported.

/// The code of an error that stands in place of what is too large. No server has it and no statement can raise it: codes are of digits
/// and capital letters.
pub(crate) const LARGE: &str = "large";

/// That of what no statement may do: read a type which is not Postgres' own, or begin a copy.
pub(crate) const UNSUPPORTED: &str = "unsupported";

/// The bytes that begin each message: its kind and its length.
const HEAD: usize = 5;

/// The kinds of messages that describe columns and parameters.
const COLUMNS: u8 = b'T';
const PARAMETERS: u8 = b't';

/// Those that begin a copy: from here, to here, and both.
const COPIES: [u8; 3] = [b'G', b'H', b'W'];

/// Bytes of such a message at most, since it is held. Postgres' own, of 1664 columns or 65535 parameters, come to a quarter of it.
const DESCRIPTION: u64 = 1 << 20;

/// The first number of a type that was made in a database; those below are Postgres' own.
const FIRST_MADE: u32 = 16_384;

/// Follows the messages of a server on one connection.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Bytes of a message at most; none where everything passes.
    largest: Option<u64>,
    /// Bytes of the message under way that are still to come.
    left: u64,
}

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is longer than it may be.
    TooLarge {
        /// Its length, as it says.
        length: u64,
        /// Bytes of a message of its kind at most.
        largest: u64,
    },
    /// A column, counted from 1, is of a type that was made in the database.
    Column(usize),
    /// A parameter, counted from 1, is of such a type.
    Parameter(usize),
    /// It begins a copy.
    Copy,
    /// It is no description of columns or parameters, though it says so.
    Malformed,
}

impl Guard {
    /// One that lets by messages of so many bytes at most, and types of Postgres' own; without a number, everything.
    pub(crate) fn new(largest: Option<u64>) -> Self {
        Self { largest, left: 0 }
    }

    /// How many of the next bytes may be passed on. Those after them are the beginning of a message of which too little has come
    /// to know whether it may be, and are to be shown again with what follows: fewer than [`HEAD`], or no more than
    /// [`DESCRIPTION`] and one. Or they are of one that is refused.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> (usize, Option<Refused>) {
        let Some(largest) = self.largest else {
            return (bytes.len(), None);
        };
        let mut clear = 0;
        loop {
            let unseen = bytes.get(clear..).unwrap_or_default();
            let of_message = usize::try_from(self.left).map_or(unseen.len(), |left| left.min(unseen.len()));
            let (_, next) = unseen.split_at(of_message);
            clear += of_message;
            self.left -= of_message as u64;
            let Some([kind, length @ ..]) = next.first_chunk::<HEAD>() else {
                return (clear, None);
            };
            let length = u64::from(u32::from_be_bytes(*length));
            let describes = matches!(*kind, COLUMNS | PARAMETERS);
            let largest = if describes { largest.min(DESCRIPTION) } else { largest };
            if length > largest {
                return (clear, Some(Refused::TooLarge { length, largest }));
            }
            if COPIES.contains(kind) {
                return (clear, Some(Refused::Copy));
            }
            // The kind is not counted in it.
            let whole = length + 1;
            if describes {
                let whole = usize::try_from(whole).unwrap_or(usize::MAX);
                if next.len() < whole {
                    return (clear, None);
                }
                if let Err(refused) = described(*kind, next.get(HEAD..whole).unwrap_or_default()) {
                    return (clear, Some(refused));
                }
            }
            self.left = whole;
        }
    }
}

/// Looks for types that are not Postgres' own.
fn described(kind: u8, description: &[u8]) -> Result<(), Refused> {
    let mut rest = description;
    let mut skip = |count: usize| -> Result<&[u8], Refused> {
        let (taken, after) = rest.split_at_checked(count).ok_or(Refused::Malformed)?;
        rest = after;
        Ok(taken)
    };
    let count = skip(2)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    for number in 1..=count {
        if kind == COLUMNS {
            while skip(1)? != [0] {}
            // The table it is of, and its place there.
            skip(6)?;
        }
        let type_number = skip(4)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        if type_number >= FIRST_MADE {
            let place = if kind == COLUMNS {
                Refused::Column
            } else {
                Refused::Parameter
            };
            return Err(place(number));
        }
        if kind == COLUMNS {
            // The size, the modifier and the format.
            skip(8)?;
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Refused::Malformed)
    }
}

impl Refused {
    /// The error that stands in its place, as a server would send it.
    pub(crate) fn error(self) -> Vec<u8> {
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let (code, text) = match self {
            Self::TooLarge { length, largest } => (
                LARGE,
                format!(
                    "a row, or another message, of the database is {} MiB long, and {} MiB at most are taken: read less at once, fewer \
                     columns or parts of a value",
                    mebibytes(length),
                    mebibytes(largest)
                ),
            ),
            Self::Column(number) => (
                UNSUPPORTED,
                format!(
                    "column {number} is of a type that was made in this database, which is not supported: cast it in the statement, to \
                     text for example"
                ),
            ),
            Self::Parameter(number) => (
                UNSUPPORTED,
                format!(
                    "parameter {number} would be of a type that was made in this database, which is not supported: cast it in the \
                     statement, as ${number}::text::type"
                ),
            ),
            Self::Copy => (
                UNSUPPORTED,
                "COPY is not supported: insert from parameters that are arrays, and select".to_owned(),
            ),
            Self::Malformed => (
                LARGE,
                "what the database says of columns or parameters is none of Postgres' messages: look what answers there".to_owned(),
            ),
        };
        let mut fields = Vec::new();
        for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', &text)] {
            fields.push(field);
            fields.extend(value.bytes());
            fields.push(0);
        }
        fields.push(0);
        // It is far shorter than this.
        let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
        [&[b'E'][..], &length.to_be_bytes(), &fields].concat()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    const LARGEST: u64 = 1000;

    /// A message of a kind with these bytes after its length.
    fn with(kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u32::try_from(rest.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), rest].concat()
    }

    /// A message of a kind whose rest is so long.
    fn message(kind: u8, rest: usize) -> Vec<u8> {
        with(kind, &vec![kind; rest])
    }

    /// A description of columns of these types.
    fn columns(types: &[u32]) -> Vec<u8> {
        let mut rest = u16::try_from(types.len()).unwrap().to_be_bytes().to_vec();
        for number in types {
            rest.extend(b"a name\0table.");
            rest.extend(number.to_be_bytes());
            rest.extend(b"8 bytes.");
        }
        with(COLUMNS, &rest)
    }

    /// A description of parameters of these types.
    fn parameters(types: &[u32]) -> Vec<u8> {
        let mut rest = u16::try_from(types.len()).unwrap().to_be_bytes().to_vec();
        rest.extend(types.iter().flat_map(|number| number.to_be_bytes()));
        with(PARAMETERS, &rest)
    }

    /// What passes of bytes that come in pieces of this size, and why the rest does not.
    fn passed(bytes: &[u8], size: usize) -> (Vec<u8>, Option<Refused>) {
        let mut guard = Guard::new(Some(LARGEST));
        let (mut held, mut passed) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            let (clear, refused) = guard.follow(&held);
            passed.extend(held.drain(..clear));
            if refused.is_some() {
                return (passed, refused);
            }
            let describes = held.first().is_some_and(|kind| [COLUMNS, PARAMETERS].contains(kind));
            assert!(
                held.len() < HEAD || describes && held.len() as u64 <= LARGEST,
                "whatever is known to be small enough is passed on at once"
            );
        }
        (passed, None)
    }

    #[test]
    fn messages_pass_whole_until_one_may_not_however_they_are_cut() {
        let small = [
            message(b'R', 4),
            message(b'Z', 0),
            message(b'D', 996),
            columns(&[]),
            columns(&[25, 16_383]),
            parameters(&[20; 200]),
            message(b'C', 7),
        ]
        .concat();
        let large = message(b'D', 997);
        let too_large = Refused::TooLarge {
            length: 1001,
            largest: 1000,
        };
        type Case<'c> = (&'c [&'c [u8]], usize, Option<Refused>);
        let cases: [Case<'_>; 15] = [
            (&[], 0, None),
            (&[&small], small.len(), None),
            (&[&small, &large], small.len(), Some(too_large)),
            (&[&large, &small], 0, Some(too_large)),
            // Its length is enough.
            (&[&small, &large[..HEAD]], small.len(), Some(too_large)),
            (&[&small, &large[..HEAD - 1]], small.len(), None),
            (&[&small, &message(COLUMNS, 997)], small.len(), Some(too_large)),
            (
                &[&small, &columns(&[25, 25, 16_384])],
                small.len(),
                Some(Refused::Column(3)),
            ),
            (&[&parameters(&[u32::MAX, 25])], 0, Some(Refused::Parameter(1))),
            (&[&small, &message(b'G', 5)], small.len(), Some(Refused::Copy)),
            (&[&message(b'H', 3), &small], 0, Some(Refused::Copy)),
            // Half a description is nothing yet.
            (&[&small, &columns(&[16_384])[..20]], small.len(), None),
            // Fewer than there should be, more, and no end of a name.
            (&[&with(PARAMETERS, &[0, 2, 0, 0, 0, 25])], 0, Some(Refused::Malformed)),
            (&[&with(PARAMETERS, &[0, 0, 0])], 0, Some(Refused::Malformed)),
            (&[&with(COLUMNS, &[0, 1, b'a', b'a'])], 0, Some(Refused::Malformed)),
        ];
        for (parts, length, refused) in cases {
            let bytes = parts.concat();
            for size in (1..20).chain([1000, 1 << 16]) {
                assert_eq!(
                    passed(&bytes, size),
                    (bytes[..length].to_vec(), refused),
                    "{parts:?} by {size}"
                );
            }
        }
        // A message whose length says less than its own four bytes is for the client to judge.
        let odd = [b'R', 0, 0, 0, 0];
        assert_eq!(passed(&odd, 5), (odd[..1].to_vec(), None));
        let all = [large, columns(&[16_384])].concat();
        assert_eq!(Guard::new(None).follow(&all), (all.len(), None), "nothing is looked at");
    }
}
