//! A bound on what a server says at once, for statements of somebody who is not trusted.
//!
//! A row is one message, and the library that speaks Postgres' protocol makes room for all of a message once it has read its
//! length, up to 1 GiB, before anybody here can refuse it. So the messages are followed on their way through a `pipe`. Each is a
//! byte that says its kind, a length of four bytes that counts itself, and the rest. Where one says that it is longer than it
//! may be, nothing of it is passed on. In its place the client is told so by an error in the form of the server's, which ends
//! the connection; its code tells the pool that the server is well.

/// The code of that error. No server has it and no statement can raise it: codes are of digits and capital letters.
pub(crate) const CODE: &str = "large";

/// The bytes that begin each message: its kind and its length.
const HEAD: usize = 5;

/// Follows the messages of a server on one connection.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Bytes of a message at most.
    largest: u64,
    /// Bytes of the message under way that are still to come.
    left: u64,
}

/// A message that is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    /// Its length, as it says.
    length: u64,
    /// Bytes of a message at most.
    largest: u64,
}

impl Guard {
    pub(crate) fn new(largest: u64) -> Self {
        Self { largest, left: 0 }
    }

    /// How many of the next bytes may be passed on. Those after them are the beginning of a message of which too little has come
    /// to know its length, and are to be shown again with what follows; or of one that is too large.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> (usize, Option<TooLarge>) {
        let mut clear = 0;
        loop {
            let unseen = bytes.get(clear..).unwrap_or_default();
            let of_message = usize::try_from(self.left).map_or(unseen.len(), |left| left.min(unseen.len()));
            let (_, next) = unseen.split_at(of_message);
            clear += of_message;
            self.left -= of_message as u64;
            let Some([_kind, length @ ..]) = next.first_chunk::<HEAD>() else {
                return (clear, None);
            };
            let length = u64::from(u32::from_be_bytes(*length));
            if length > self.largest {
                let largest = self.largest;
                return (clear, Some(TooLarge { length, largest }));
            }
            // The kind is not counted in it.
            self.left = length + 1;
        }
    }
}

impl TooLarge {
    /// The error that stands in its place, as a server would send it.
    pub(crate) fn error(self) -> Vec<u8> {
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let text = format!(
            "a row, or another message, of the database is {} MiB long, and {} MiB at most are taken: read less at once, fewer columns \
             or parts of a value",
            mebibytes(self.length),
            mebibytes(self.largest)
        );
        let mut fields = Vec::new();
        for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', CODE), (b'M', &text)] {
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

    /// A message of a kind whose rest is so long.
    fn message(kind: u8, rest: usize) -> Vec<u8> {
        let length = u32::try_from(rest + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), &vec![kind; rest]].concat()
    }

    /// What passes of bytes that come in pieces of this size, and what is too large.
    fn passed(bytes: &[u8], size: usize) -> (Vec<u8>, Option<TooLarge>) {
        let mut guard = Guard::new(1000);
        let (mut held, mut passed) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            let (clear, too_large) = guard.follow(&held);
            passed.extend(held.drain(..clear));
            if too_large.is_some() {
                return (passed, too_large);
            }
            assert!(
                held.len() < HEAD,
                "whatever is known to be small enough is passed on at once"
            );
        }
        (passed, None)
    }

    #[test]
    fn messages_pass_whole_until_one_is_too_large_however_they_are_cut() {
        let small = [message(b'R', 4), message(b'Z', 0), message(b'D', 996), message(b'C', 7)].concat();
        let large = message(b'D', 997);
        let too_large = TooLarge {
            length: 1001,
            largest: 1000,
        };
        // A message whose length says less than its own four bytes is for the client to judge.
        let odd = [b'R', 0, 0, 0, 0];
        type Case<'c> = (&'c [&'c [u8]], usize, Option<TooLarge>);
        let cases: [Case<'_>; 6] = [
            (&[], 0, None),
            (&[&small], small.len(), None),
            (&[&small, &large], small.len(), Some(too_large)),
            (&[&large, &small], 0, Some(too_large)),
            // Its length is enough.
            (&[&small, &large[..HEAD]], small.len(), Some(too_large)),
            (&[&small, &large[..HEAD - 1]], small.len(), None),
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
        assert_eq!(passed(&odd, 5), (odd[..1].to_vec(), None));
    }
}
