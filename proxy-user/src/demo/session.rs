//! Sessions in the cache, by the memcached text protocol (protocol.txt: `gets`, `add`, `cas`).
//!
//! A visit is counted exactly once also when the connection breaks between `cas` and its answer:
//! each write leaves a nonce in the session, so that the second attempt sees whether the first was
//! done.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Time for one attempt: connect, read, write.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);
/// Attempts for one visit, each on a new connection after the first.
const ATTEMPTS: u32 = 2;
/// Writers that may be in the way of one attempt.
const CONFLICTS_MAX: u32 = 16;
/// A session ends when nobody comes for so long, seconds.
const EXPIRY_S: u32 = 1800;
/// Client flags: the value is JSON.
const FLAGS: u32 = 0x4a;
/// Longest value taken from the cache.
const VALUE_MAX: usize = 4096;
/// Idle connections kept.
const IDLE_MAX: usize = 16;

/// A counted visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visit {
    /// 32 hexadecimal digits.
    pub(super) id: String,
    /// This one included.
    pub(super) visits: u64,
    /// The session did not exist before.
    pub(super) is_new: bool,
    /// The backend of the visit before.
    pub(super) before: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    visits: u64,
    backend: String,
    nonce: String,
}

/// What goes wrong: a sentence for the answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the cache at {0} did not answer within {OPERATION_TIMEOUT:?}")]
    Late(SocketAddr),
    #[error("the cache at {0}: {1}")]
    Io(SocketAddr, io::Error),
    #[error("the cache at {0} said {1:?}")]
    Unexpected(SocketAddr, String),
    #[error("too many visits at once to one session")]
    Busy,
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

/// The sessions' place.
#[derive(Debug)]
pub(super) struct Sessions {
    cache: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

impl Sessions {
    pub(super) const fn new(cache: SocketAddr) -> Self {
        Self { cache, idle: Mutex::new(Vec::new()) }
    }

    /// Counts a visit in this session, or in a new one if there is none of that name.
    pub(super) async fn visit(
        &self,
        id: Option<&str>,
        backend: &str,
    ) -> Result<Visit, SessionError> {
        let nonce = random()?;
        let fresh = random()?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let idle = if attempt == 1 { self.idle.lock().pop() } else { None };
            let counting = self.attempt(idle, id, &fresh, backend, &nonce);
            let result = match tokio::time::timeout(OPERATION_TIMEOUT, counting).await {
                Ok(result) => result,
                Err(_elapsed) => Err(SessionError::Late(self.cache)),
            };
            match result {
                // The others would not be better: they are of the same age.
                Err(SessionError::Io(..) | SessionError::Late(_)) if attempt < ATTEMPTS => {
                    self.idle.lock().clear();
                }
                result => return result,
            }
        }
    }

    async fn attempt(
        &self,
        idle: Option<Connection>,
        id: Option<&str>,
        fresh: &str,
        backend: &str,
        nonce: &str,
    ) -> Result<Visit, SessionError> {
        let broken = |error| SessionError::Io(self.cache, error);
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::open(self.cache).await.map_err(broken)?,
        };
        let mut conflicts = 0;
        let visit = loop {
            if let Some(visit) = connection.count(self.cache, id, fresh, backend, nonce).await? {
                break visit;
            }
            conflicts += 1;
            if conflicts == CONFLICTS_MAX {
                return Err(SessionError::Busy);
            }
        };
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(visit)
    }
}

fn random() -> Result<String, SessionError> {
    use std::fmt::Write as _;
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(SessionError::Random)?;
    Ok(bytes.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    }))
}

/// One connection to the cache.
#[derive(Debug)]
struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    async fn open(cache: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(cache).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One read and one write; `None`: somebody else wrote in between.
    async fn count(
        &mut self,
        cache: SocketAddr,
        id: Option<&str>,
        fresh: &str,
        backend: &str,
        nonce: &str,
    ) -> Result<Option<Visit>, SessionError> {
        let broken = |error| SessionError::Io(cache, error);
        let mut found = None;
        // A new session that a broken attempt may have made counts as this visitor's.
        for id in id.into_iter().chain([fresh]) {
            if let Some((stored, cas)) = self.gets(id).await.map_err(broken)? {
                found = Some((id, stored, cas));
                break;
            }
        }
        let (id, visits, before, cas) = match found {
            Some((id, stored, _)) if stored.nonce == nonce => {
                let is_new = id == fresh;
                let (id, visits) = (id.to_owned(), stored.visits);
                return Ok(Some(Visit { id, visits, is_new, before: None }));
            }
            Some((id, stored, cas)) => (id, stored.visits + 1, Some(stored.backend), Some(cas)),
            None => (fresh, 1, None, None),
        };
        let stored = Stored { visits, backend: backend.to_owned(), nonce: nonce.to_owned() };
        let said = self.store(id, &stored, cas).await.map_err(broken)?;
        match said.as_str() {
            "STORED" => {
                let is_new = cas.is_none();
                Ok(Some(Visit { id: id.to_owned(), visits, is_new, before }))
            }
            "EXISTS" | "NOT_FOUND" | "NOT_STORED" => Ok(None),
            _ => Err(SessionError::Unexpected(cache, said)),
        }
    }

    async fn gets(&mut self, id: &str) -> io::Result<Option<(Stored, u64)>> {
        self.stream.write_all(format!("gets demo:{id}\r\n").as_bytes()).await?;
        let line = self.line().await?;
        if line == "END" {
            return Ok(None);
        }
        let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("it said {line:?}"));
        let mut words = line.split(' ');
        let (Some("VALUE"), Some(_key), Some(_flags)) = (words.next(), words.next(), words.next())
        else {
            return Err(odd());
        };
        let size = words.next().and_then(|word| word.parse::<usize>().ok());
        let cas = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(size), Some(cas)) = (size.filter(|&size| size <= VALUE_MAX), cas) else {
            return Err(odd());
        };
        let mut value = vec![0; size + 2];
        self.stream.read_exact(&mut value).await?;
        let stored = serde_json::from_slice(&value[..size]).map_err(io::Error::from)?;
        if self.line().await? != "END" {
            return Err(odd());
        }
        Ok(Some((stored, cas)))
    }

    async fn store(&mut self, id: &str, stored: &Stored, cas: Option<u64>) -> io::Result<String> {
        let value = serde_json::to_string(stored).map_err(io::Error::from)?;
        let size = value.len();
        let command = match cas {
            Some(cas) => format!("cas demo:{id} {FLAGS} {EXPIRY_S} {size} {cas}\r\n{value}\r\n"),
            None => format!("add demo:{id} {FLAGS} {EXPIRY_S} {size}\r\n{value}\r\n"),
        };
        self.stream.write_all(command.as_bytes()).await?;
        self.line().await
    }

    /// A line without its CRLF; at most as long as anything a cache says.
    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(1024);
        limited.read_until(b'\n', &mut line).await?;
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}
