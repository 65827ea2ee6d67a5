//! The body of a request that comes in one piece: it has a time limit, and a large one waits for its turn first.
//!
//! A message says its length before it comes. What is small is let through; where more comes than that, as many bytes
//! as the message says are asked for at once, so that no request holds a part and waits for the rest while another does
//! the same. Until then nothing more is read, and the client is held up by flow control.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::convert::MAX_MESSAGE;
use super::room::{Held, Room, SMALL};

/// How a message begins: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a request holds, until its call lets go of it.
pub type Reservation = Arc<Mutex<Option<Held>>>;

/// The body; see the head of this file.
pub struct RequestBody {
    body: Body,
    room: Room,
    reservation: Reservation,
    received: usize,
    /// The first bytes.
    prefix: Vec<u8>,
    state: State,
}

enum State {
    /// As long as it is small. Once it has been waited for, it has so long to come.
    Small(Option<Pin<Box<Sleep>>>),
    /// It waits for its turn. The frame is the last one that came.
    Waiting(BoxFuture<'static, Result<Held, Status>>, Option<Frame<Bytes>>),
    /// It has its turn, and so long to come.
    Large(Pin<Box<Sleep>>),
}

impl RequestBody {
    /// A body that waits where it is large.
    pub fn new(body: Body, room: Room, reservation: Reservation) -> Self {
        Self {
            body,
            room,
            reservation,
            received: 0,
            prefix: Vec::new(),
            state: State::Small(None),
        }
    }

    /// Looks at what came. Where it is no longer small, it is to wait.
    fn received(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let Some(data) = frame.data_ref() else {
            return Some(frame);
        };
        self.received = self.received.saturating_add(data.len());
        let missing = PREFIX.saturating_sub(self.prefix.len()).min(data.len());
        self.prefix.extend_from_slice(data.get(..missing).unwrap_or_default());
        if !matches!(self.state, State::Small(_)) || self.received <= SMALL {
            return Some(frame);
        }
        let length = match *self.prefix {
            [_, a, b, c, d] => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        };
        // One that says more is refused for its length, and one that is not one message for something else.
        let length = usize::try_from(length)
            .unwrap_or(MAX_MESSAGE)
            .clamp(self.received, MAX_MESSAGE.max(self.received));
        self.state = State::Waiting(self.room.clone().turn(length).boxed(), Some(frame));
        None
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Waiting(turn, frame) => {
                    let held = std::task::ready!(turn.as_mut().poll(context))?;
                    let frame = frame.take();
                    *this.reservation.lock() = Some(held);
                    this.state = State::Large(Box::pin(tokio::time::sleep(this.room.coming_time_limit())));
                    if let Some(frame) = frame {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                State::Small(_) | State::Large(_) => {
                    let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
                        let coming = || Box::pin(tokio::time::sleep(this.room.coming_time_limit()));
                        let limit = match &mut this.state {
                            State::Small(limit) => limit.get_or_insert_with(coming),
                            State::Large(limit) => limit,
                            State::Waiting(..) => return Poll::Pending,
                        };
                        std::task::ready!(limit.as_mut().poll(context));
                        let late = Status::deadline_exceeded("the request has not come in time");
                        return Poll::Ready(Some(Err(late)));
                    };
                    let frame = match frame {
                        Some(Ok(frame)) => frame,
                        other => return Poll::Ready(other),
                    };
                    if let Some(frame) = this.received(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.state, State::Waiting(..)) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;

    use super::*;

    /// A message of so many bytes, in frames of 16 KiB; the last one does not come if it is cut off.
    fn body(length: usize, cut_off: bool) -> Body {
        let mut message = vec![0];
        message.extend(u32::try_from(length).unwrap().to_be_bytes());
        message.extend(std::iter::repeat_n(7, length));
        let frames: Vec<_> = message
            .chunks(16 << 10)
            .map(|part| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        let frames = futures::stream::iter(frames);
        if cut_off {
            Body::new(StreamBody::new(futures::StreamExt::chain(
                frames,
                futures::stream::pending(),
            )))
        } else {
            Body::new(StreamBody::new(frames))
        }
    }

    #[tokio::test]
    async fn a_large_request_holds_room_and_a_small_one_does_not() {
        for (length, holds) in [(0, false), (SMALL - PREFIX, false), (SMALL, true), (MAX_MESSAGE, true)] {
            let reservation = Reservation::default();
            let request = RequestBody::new(body(length, false), Room::new(1), Arc::clone(&reservation));
            let received = request.collect().await.unwrap().to_bytes();
            assert_eq!(received.len(), length + PREFIX, "all of it arrives");
            assert_eq!(reservation.lock().is_some(), holds, "{length}");
        }
    }

    #[tokio::test]
    async fn one_that_does_not_come_is_given_up() {
        let reservation = Reservation::default();
        let request = RequestBody::new(body(MAX_MESSAGE, true), Room::hasty(), Arc::clone(&reservation));
        let status = request.collect().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn many_at_a_time_get_their_turns_one_after_the_other() {
        let room = Room::new(1);
        let requests = (0..200).map(|_| {
            let reservation = Reservation::default();
            let request = RequestBody::new(body(MAX_MESSAGE, false), room.clone(), Arc::clone(&reservation));
            async move {
                let length = request.collect().await.unwrap().to_bytes().len();
                reservation.lock().take();
                length
            }
        });
        let lengths = futures::future::join_all(requests).await;
        assert!(lengths.iter().all(|length| *length == MAX_MESSAGE + PREFIX));
    }
}
