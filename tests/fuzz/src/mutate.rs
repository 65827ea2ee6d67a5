//! A mutator that needs nothing but itself: it changes what the corpus has, at random by a fixed seed, and feeds it to a
//! target. It knows nothing of what code runs, which is what `cargo fuzz` is for; it is fast, the same on every machine, and
//! finds what is near the surface.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Target;

/// Longer inputs are cut.
const LONGEST: usize = 64 << 10;

/// An input that takes longer than this is as bad as one that crashes: it is a way to keep a server busy.
const SLOW: Duration = Duration::from_secs(5);

/// Numbers at which things go wrong.
const EDGES: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So many mutations.
    Count(u32),
    /// So long.
    Time(Duration),
}

/// Feeds a target its corpus, and then mutations of it. Returns how many inputs there were.
///
/// # Panics
///
/// Where an input breaks a promise; the input is in a file that the message names.
pub fn run(target: &Target, seed: u64, until: Until) -> u64 {
    let corpus = target.corpus();
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    let mut fed = 0;
    for input in &corpus {
        feed(target, input);
        fed += 1;
    }
    let mut mutator = Mutator {
        random: Random::new(seed, target.name),
        corpus: &corpus,
        words: target.words,
    };
    let began = Instant::now();
    let mut mutations = 0_u32;
    while match until {
        Until::Count(count) => mutations < count,
        Until::Time(time) => began.elapsed() < time,
    } {
        feed(target, &mutator.input());
        mutations = mutations.wrapping_add(1);
        fed += 1;
    }
    fed
}

/// Feeds one input. Where that panics, or takes for ever, it is kept in a file.
fn feed(target: &Target, input: &[u8]) {
    let guard = Kept { target, input };
    let began = Instant::now();
    (target.feed)(input);
    let took = began.elapsed();
    assert!(took < SLOW, "{}: {} bytes took {took:?}", target.name, input.len());
    std::mem::forget(guard);
}

/// Writes the input to a file when it is dropped.
struct Kept<'a> {
    target: &'a Target,
    input: &'a [u8],
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let path = crash_file(self.target.name);
        match std::fs::write(&path, self.input) {
            Ok(()) => eprintln!("{}: the input is in {}", self.target.name, path.display()),
            Err(error) => eprintln!("{}: {error}; the input is {:02x?}", self.target.name, self.input),
        }
    }
}

fn crash_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("databroker-fuzz-{name}-{}", std::process::id()))
}

/// Makes inputs.
struct Mutator<'a> {
    random: Random,
    corpus: &'a [Vec<u8>],
    words: &'a [&'static str],
}

impl Mutator<'_> {
    fn input(&mut self) -> Vec<u8> {
        let mut input = self.random.of(self.corpus).clone();
        for _ in 0..=self.random.below(6) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let place = self.random.below(input.len() + 1);
        let end = place + self.random.below(input.len() - place + 1).min(64);
        match self.random.below(9) {
            0 => self.replace(input, place, |byte, random| byte ^ (1 << random.below(8))),
            1 => self.replace(input, place, |_, random| random.byte()),
            2 => self.replace(input, place, |byte, random| {
                if random.below(2) == 0 {
                    byte.wrapping_add(1)
                } else {
                    byte.wrapping_sub(1)
                }
            }),
            3 => drop(input.drain(place..end)),
            4 => {
                let part = input[place..end].to_vec();
                let most = if self.random.below(20) == 0 { 300 } else { 3 };
                let times = 1 + self.random.below(most);
                input.splice(place..place, part.repeat(times));
            }
            5 if !self.words.is_empty() => {
                let word = self.random.of(self.words).bytes();
                input.splice(place..end.min(place + 8), word);
            }
            6 => {
                let edge = *self.random.of(EDGES);
                let bytes = match self.random.below(4) {
                    0 => edge.to_le_bytes()[..4].to_vec(),
                    1 => edge.to_le_bytes().to_vec(),
                    2 => varint(edge),
                    _ => edge.to_string().into_bytes(),
                };
                input.splice(place..end.min(place + bytes.len()), bytes);
            }
            7 => {
                let other = self.random.of(self.corpus);
                let from = self.random.below(other.len() + 1);
                input.truncate(place);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let bytes: Vec<u8> = (0..=self.random.below(8)).map(|_| self.random.byte()).collect();
                input.splice(place..place, bytes);
            }
        }
    }

    fn replace(&mut self, input: &mut [u8], place: usize, change: impl FnOnce(u8, &mut Random) -> u8) {
        if let Some(byte) = input.get_mut(place) {
            *byte = change(*byte, &mut self.random);
        }
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
    bytes
}

/// Numbers that are the same for the same seed: Marsaglia's xorshift, which is plenty for this.
struct Random(u64);

impl Random {
    /// The same seed gives each target numbers of its own.
    fn new(seed: u64, name: &str) -> Self {
        let mixed = name.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |mixed, byte| {
            (mixed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(mixed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// A number below this one, or 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap().max(1);
        usize::try_from((self.next() >> 11) % bound).unwrap()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
