//! The admin server's connections, each with a bound on what it may take: so many at a time, so
//! many bytes of a request, so long without progress.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Most connections at one time; the next waits in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 32;
/// Most bytes taken between two answers: a request head, and what a client sends ahead.
const REQUEST_MAX: usize = 16 << 10;
/// Longest time in which nothing of an answer is sent: for a request to arrive, for a client to
/// read, for an idle connection. More than the usual interval of scrapes, 15 s.
const PATIENCE: Duration = Duration::from_secs(20);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The listener.
pub(super) struct Door {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    patience: Duration,
}

impl Door {
    pub(super) fn new(listener: TcpListener) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { listener, permits, patience: PATIENCE }
    }
}

impl axum::serve::Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    return (Guest::new(stream, permit, self.patience), address);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::debug!("admin: accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
pub(super) struct Guest {
    stream: TcpStream,
    /// Read since something was last sent.
    taken: usize,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Guest {
    fn new(stream: TcpStream, permit: Option<OwnedSemaphorePermit>, patience: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(patience));
        Self { stream, taken: 0, patience, deadline, _permit: permit }
    }

    /// In place of `Pending`: an error once the patience is over.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn progress(&mut self) {
        self.taken = 0;
        let next = Instant::now() + self.patience;
        self.deadline.as_mut().reset(next);
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken > REQUEST_MAX {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.wait(context),
            Poll::Ready(read) => {
                self.taken += buffer.filled().len() - before;
                Poll::Ready(read)
            }
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.wait(context),
            Poll::Ready(written) => {
                self.progress();
                Poll::Ready(written)
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(context, slices) {
            Poll::Pending => self.wait(context),
            Poll::Ready(written) => {
                self.progress();
                Poll::Ready(written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), test).await.unwrap();
        });
    }

    async fn door(patience: Duration) -> (Door, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Door { patience, ..Door::new(listener) }, address)
    }

    #[test]
    fn silence_ends() {
        run(async {
            let (mut door, address) = door(Duration::from_millis(20)).await;
            let _client = TcpStream::connect(address).await.unwrap();
            let (mut guest, _) = door.accept().await;
            let ended = guest.read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_client_that_reads_nothing_ends() {
        run(async {
            let (mut door, address) = door(Duration::from_millis(20)).await;
            let _client = TcpStream::connect(address).await.unwrap();
            let (mut guest, _) = door.accept().await;
            let ended = loop {
                if let Err(error) = guest.write_all(&[0; 1 << 16]).await {
                    break error;
                }
            };
            assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn requests_are_bounded_and_an_answer_starts_anew() {
        run(async {
            let (mut door, address) = door(PATIENCE).await;
            let mut client = TcpStream::connect(address).await.unwrap();
            let (mut guest, _) = door.accept().await;
            let mut half = vec![0; REQUEST_MAX / 2];
            for _ in 0..5 {
                client.write_all(&half).await.unwrap();
                guest.read_exact(&mut half).await.unwrap();
                guest.write_all(b"answer").await.unwrap();
            }
            client.write_all(&vec![0; 4 * REQUEST_MAX]).await.unwrap();
            let mut taken = 0;
            let ended = loop {
                match guest.read(&mut half).await {
                    Ok(n) => taken += n,
                    Err(error) => break error,
                }
            };
            assert_eq!(ended.kind(), io::ErrorKind::InvalidData);
            assert!(taken <= REQUEST_MAX + half.len(), "{taken}");
        });
    }

    #[test]
    fn connections_are_bounded() {
        run(async {
            let (mut door, address) = door(PATIENCE).await;
            let (mut clients, mut guests) = (Vec::new(), Vec::new());
            for _ in 0..CONNECTIONS_MAX {
                clients.push(TcpStream::connect(address).await.unwrap());
                guests.push(door.accept().await.0);
            }
            let _waits = TcpStream::connect(address).await.unwrap();
            assert_eq!(door.permits.available_permits(), 0);
            let short = Duration::from_millis(10);
            assert!(tokio::time::timeout(short, door.accept()).await.is_err());
            guests.pop();
            door.accept().await;
        });
    }
}
