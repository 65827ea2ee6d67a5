//! What is written to a connection, gathered until everything else that is ready has had its turn.
//!
//! HTTP/2 passes on each answer by itself and flushes after it. Where sixteen calls of a connection are answered together, or a
//! change goes to a hundred of its streams, that would be as many calls of the system and as many packets, which is a quarter
//! of what a call costs, and half of what a delivery does. So writes below [`LARGE`] wait here, and a flush only asks for a turn
//! of the runtime: when that has nothing else to do, or has done some dozens of other things, all that has come together is
//! passed on at once. The frames of 16 KiB that a page of a stream goes in are among them: that they are copied for it costs less
//! than to send each by itself.
//!
//! A flush therefore says that it is done before it is. That is right for a caller that flushes each time it is woken, and shuts the
//! connection down before it drops it. The transport does, but for three cases: until the client has sent its first bytes; where
//! reading has failed; and where this side cuts the connection. What waits then is lost if no turn comes before, as it may be
//! where the kernel still has it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that wait: a page of a stream with the frames around it.
const MOST: usize = 80 << 10;

/// Writes of so many bytes do not wait. A frame has 16 KiB unless the client asks for larger ones.
const LARGE: usize = 32 << 10;

/// A connection whose small writes are gathered.
pub(super) struct Gathered<T> {
    inner: T,
    /// What waits, and how much of it was passed on already. It is freed when all of it was, so that an idle connection holds
    /// nothing.
    waiting: Vec<u8>,
    passed: usize,
    turn: Turn,
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner,
            waiting: Vec::new(),
            passed: 0,
            turn: Turn::default(),
        }
    }

    /// Passes on what waits.
    fn poll_pass(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.passed..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.passed = self.passed.saturating_add(written);
        }
        self.waiting = Vec::new();
        self.passed = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes room for so many bytes. Says whether they can wait.
    fn poll_room(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<io::Result<bool>> {
        let is_large = bytes >= LARGE;
        if is_large || self.waiting.len().saturating_add(bytes) > MOST {
            ready!(self.poll_pass(context))?;
        }
        // Doubled as a vector is, but not beyond the most.
        let needed = self.waiting.len().saturating_add(bytes);
        if !is_large && needed > self.waiting.capacity() {
            let capacity = needed.max(self.waiting.capacity().saturating_mul(2)).min(MOST);
            self.waiting.reserve_exact(capacity.saturating_sub(self.waiting.len()));
        }
        Poll::Ready(Ok(!is_large))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if ready!(self.poll_room(context, bytes.len()))? {
            self.waiting.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if ready!(self.poll_room(context, bytes))? {
            for part in parts {
                self.waiting.extend_from_slice(part);
            }
            return Poll::Ready(Ok(bytes));
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() {
            // What the socket has taken in part had its turn.
            if self.passed == 0 && !self.turn.has_come(context) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_pass(context))?;
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

/// A turn of the runtime that is waited for, without anybody's being kept waiting.
#[derive(Default)]
struct Turn {
    /// The runtime's promise of one; none where it was not asked.
    promised: Option<BoxFuture<'static, ()>>,
    come: Arc<Come>,
}

/// What the runtime tells when the turn has come.
#[derive(Default)]
struct Come {
    has_come: AtomicBool,
    /// Of the task that writes.
    writer: AtomicWaker,
}

impl Turn {
    /// Says whether the turn has come, once; else the caller is woken when it does.
    fn has_come(&mut self, context: &mut Context<'_>) -> bool {
        self.come.writer.register(context.waker());
        if self.promised.is_some() {
            let has_come = self.come.has_come.swap(false, Ordering::Acquire);
            if has_come {
                self.promised = None;
            }
            return has_come;
        }
        let waker = Waker::from(Arc::clone(&self.come));
        let promised = self.promised.insert(Box::pin(tokio::task::yield_now()));
        // It is not done before it was asked twice.
        let _ = promised.as_mut().poll(&mut Context::from_waker(&waker));
        false
    }
}

impl Wake for Come {
    fn wake(self: Arc<Self>) {
        self.has_come.store(true, Ordering::Release);
        self.writer.wake();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Remembers how much it was given at a time.
    struct Counted(DuplexStream, Vec<usize>);

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let written = ready!(Pin::new(&mut self.0).poll_write(context, bytes))?;
            self.1.push(written);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    /// A connection of which the other end takes so many bytes before it is read from, and that end.
    fn connection(takes: usize) -> (Gathered<Counted>, DuplexStream) {
        let (near, far) = duplex(takes);
        (Gathered::new(Counted(near, Vec::new())), far)
    }

    /// Flushes as the transport does: whenever it is woken, until nothing waits.
    async fn flush_when_woken(gathered: &mut Gathered<Counted>) {
        poll_fn(|context| {
            ready!(Pin::new(&mut *gathered).poll_flush(context))?;
            if gathered.waiting.is_empty() {
                return Poll::Ready(io::Result::Ok(()));
            }
            Poll::Pending
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn small_writes_are_passed_on_together_when_the_others_had_their_turn() {
        let (mut gathered, mut far) = connection(1 << 20);
        for _ in 0..3 {
            gathered.write_all(&[7; 700]).await.unwrap();
            gathered.flush().await.unwrap();
        }
        assert!(gathered.inner.1.is_empty(), "others may add to it");
        flush_when_woken(&mut gathered).await;
        assert_eq!(gathered.inner.1, [2100]);
        // And once more, from the beginning.
        gathered.write_all(&[8; 10]).await.unwrap();
        gathered.flush().await.unwrap();
        assert_eq!(gathered.inner.1, [2100]);
        flush_when_woken(&mut gathered).await;
        assert_eq!(gathered.inner.1, [2100, 10]);
        let mut heard = [0; 2110];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, *[&[7; 2100][..], &[8; 10]].concat());
    }

    #[tokio::test]
    async fn the_frames_of_a_page_are_passed_on_together() {
        let (mut gathered, _far) = connection(1 << 20);
        const FRAME: usize = (16 << 10) + 9;
        for _ in 0..4 {
            gathered.write_all(&[7; FRAME]).await.unwrap();
            gathered.flush().await.unwrap();
        }
        flush_when_woken(&mut gathered).await;
        assert_eq!(gathered.inner.1, [4 * FRAME]);
    }

    #[tokio::test]
    async fn all_of_it_arrives_in_its_order_whatever_its_size_and_however_slow_the_other_end() {
        let sizes = [1, 700, LARGE, 3, LARGE - 1, LARGE - 1, LARGE - 1, MOST + 1, 0, 5];
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(sizes.iter().sum()).collect();
        for takes in [1, 100, 1 << 20] {
            let (mut gathered, mut far) = connection(takes);
            let writing = async {
                let mut rest = &sent[..];
                for size in sizes {
                    let (now, later) = rest.split_at(size);
                    gathered.write_all(now).await.unwrap();
                    gathered.flush().await.unwrap();
                    assert!(gathered.waiting.capacity() <= MOST);
                    rest = later;
                }
                // What is left goes before the end.
                gathered.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let (_, read) = tokio::join!(writing, far.read_to_end(&mut heard));
            read.unwrap();
            assert!(heard == sent, "{takes}: {} of {} bytes", heard.len(), sent.len());
        }
    }

    #[tokio::test]
    async fn an_idle_connection_holds_nothing_and_a_broken_one_says_so() {
        let (mut gathered, far) = connection(1 << 20);
        gathered.write_all(&[7; 700]).await.unwrap();
        flush_when_woken(&mut gathered).await;
        assert_eq!(gathered.waiting.capacity(), 0);
        drop(far);
        gathered.write_all(&[7; 700]).await.unwrap();
        let broken = poll_fn(|context| match Pin::new(&mut gathered).poll_flush(context) {
            Poll::Ready(Ok(())) => Poll::Pending,
            other => other,
        });
        assert_eq!(broken.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
