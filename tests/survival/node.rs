//! One node in a namespace of its own, with nothing but a loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::clients::Memcached;
use tests::netns::Namespace;
use tests::process::{Process, child_running, tail};
use tests::rights::{Rights, parent_of};
use tests::{eventually, topology};

use crate::workload::{Writer, expected};

const CACHE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 11211);
const LIMIT: Duration = Duration::from_secs(5);

/// The guardian, its namespace and its folder.
pub(crate) struct Node {
    keeper: Process,
    namespace: Namespace,
    folder: TempDir,
    killed: Option<Pid>,
}

impl Node {
    pub(crate) fn start(memory: &str) -> Result<Self> {
        Self::start_with(memory, "auto")
    }

    /// With a driver.
    pub(crate) fn start_with(memory: &str, io: &str) -> Result<Self> {
        let namespace = Namespace::create("tandem-survival", "one")?;
        let folder = tempfile::Builder::new().prefix("tandem-survival").tempdir()?;
        let config = folder.path().join("node.toml");
        let state = folder.path().display();
        let text = format!(
            "[node]\nname = \"one\"\nstate_dir = \"{state}\"\n\
             [cache]\nlisten = [\"127.0.0.1:11211\"]\nmemory = \"{memory}\"\n\
             [engine]\nworkers = 2\nio = \"{io}\"\n[admin]\nlisten = \"127.0.0.1:9900\"\n"
        );
        fs::write(&config, text)?;
        let mut command = namespace.command(topology::tandem_binary()?);
        command.arg("run").arg("--config").arg(&config);
        let keeper = Process::start("tandem", &mut command, &folder.path().join("log"))?;
        let node = Self { keeper, namespace, folder, killed: None };
        eventually("the first answer", Duration::from_secs(10), || {
            ensure!(node.client()?.set("keep", &expected("keep", 1))? == "STORED");
            Ok(())
        })
        .with_context(|| node.log_tail())?;
        Ok(node)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log(), 20)
    }

    pub(crate) fn client(&self) -> Result<Memcached> {
        self.namespace.run(|| Memcached::connect(CACHE, LIMIT))
    }

    fn guardian(&self) -> Result<Pid> {
        child_running(self.keeper.pid(), "guardian").context("no guardian just now")
    }

    fn engine(&self) -> Result<Pid> {
        child_running(self.guardian()?, "engine")
            .filter(|pid| Some(*pid) != self.killed)
            .context("no engine just now")
    }

    /// The memory of the store, through the guardian's descriptor.
    pub(crate) fn region(&self) -> Result<File> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.guardian()?))? {
            let path = entry?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if target.to_string_lossy().contains("memfd:tandem-store") {
                return Ok(File::open(path)?);
            }
        }
        bail!("the guardian holds no memfd called tandem-store")
    }

    /// Lets the writers write for `moment`, then stops the guardian, so that no new engine touches
    /// the region, and kills the engine.
    pub(crate) fn write_until_killed(
        &mut self,
        writers: &mut [Writer],
        moment: Duration,
    ) -> Result<()> {
        let engine = eventually("an engine", LIMIT, || self.engine())?;
        // Answered once, so that this engine has accepted it: a connection that still waited at the
        // listener would outlive the kill, and the next engine would do what it had brought.
        let mut clients = writers.iter().map(|_| self.accepted()).collect::<Result<Vec<_>>>()?;
        let guardian = self.guardian()?;
        std::thread::scope(|scope| {
            for (writer, client) in writers.iter_mut().zip(&mut clients) {
                // An error is the kill itself: the write is in doubt.
                scope.spawn(move || while writer.step(client).is_ok() {});
            }
            let until = Instant::now() + moment;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            kill(guardian, Signal::SIGSTOP)?;
            kill(engine, Signal::SIGKILL)?;
            anyhow::Ok(())
        })?;
        self.killed = Some(engine);
        eventually("the engine to be dead", LIMIT, || {
            let stat = fs::read_to_string(format!("/proc/{engine}/stat"))?;
            ensure!(stat.contains(") Z "), "{stat}");
            // That is its first thread alone: no other may still write.
            let threads = fs::read_dir(format!("/proc/{engine}/task"))?.count();
            ensure!(threads <= 1, "{threads} threads");
            Ok(())
        })
    }

    /// A connection that the engine serves.
    fn accepted(&self) -> Result<Memcached> {
        eventually("an answer", LIMIT, || {
            let mut client = self.client()?;
            client.get("keep")?;
            Ok(client)
        })
    }

    /// Lets the guardian go on: it starts the next engine.
    pub(crate) fn resume(&mut self) -> Result<()> {
        Ok(kill(self.guardian()?, Signal::SIGCONT)?)
    }

    /// Reads every key through the next engine.
    pub(crate) fn read_back(&mut self, writers: &mut [Writer]) -> Result<()> {
        // A connection may still reach the accept queue of the dead; only answers count.
        let mut client = self.accepted().context("the next engine")?;
        for writer in writers {
            let keys: Vec<(usize, String)> = writer.keys().collect();
            for (number, key) in keys {
                let found = client.get(&key)?;
                writer.judge(number, found.as_deref()).context("through the next engine")?;
                writer.adopt(number, found.as_deref());
            }
        }
        Ok(())
    }

    /// Fills the store with values of one mebibyte less a little.
    pub(crate) fn fill(&self, mebibytes: usize) -> Result<()> {
        let mut client = self.client()?;
        let value = vec![b'f'; (1 << 20) - 1024];
        for index in 0..mebibytes {
            let answer = client.set(&format!("fill{index}"), &value)?;
            ensure!(answer == "STORED", "fill answered {answer}");
        }
        ensure!(client.set("keep", &expected("keep", 1))? == "STORED");
        Ok(())
    }

    pub(crate) fn kill_engine(&mut self) -> Result<()> {
        let engine = eventually("an engine", LIMIT, || self.engine())?;
        kill(engine, Signal::SIGKILL)?;
        self.killed = Some(engine);
        Ok(())
    }

    /// Makes the engine's main thread make a system call: see [`tests::rights::force_call`].
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn force_call(&mut self, call: i64) -> Result<()> {
        let engine = eventually("an engine in a system call", LIMIT, || {
            let engine = self.engine()?;
            // One that has only begun has no list yet.
            ensure!(Rights::of(engine)?.seccomp == 2, "{engine} is not bounded yet");
            tests::rights::force_call(engine, call, [0; 3]).map(|()| engine)
        })?;
        self.killed = Some(engine);
        Ok(())
    }

    /// Stops the engine, so that it can do nothing, and kills its guardian; waits for its end.
    pub(crate) fn kill_guardian_of_hung_engine(&mut self) -> Result<()> {
        let engine = eventually("an engine", LIMIT, || self.engine())?;
        let guardian = parent_of(engine)?;
        kill(engine, Signal::SIGSTOP)?;
        kill(guardian, Signal::SIGKILL)?;
        eventually("the engine to end", LIMIT, || {
            let stat = fs::read_to_string(format!("/proc/{engine}/stat")).unwrap_or_default();
            ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
            Ok(())
        })
    }

    /// How often the log says `words`.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn logged(&self, words: &str) -> usize {
        self.keeper.output().matches(words).count()
    }

    /// Connects again and again until one connection gives `value` of the key `keep`; counts them.
    ///
    /// # Errors
    /// When a connection is refused: the listeners outlive the engine.
    pub(crate) fn connect_until_answer(&self, value: &[u8]) -> Result<u64> {
        self.namespace.run(|| {
            let deadline = Instant::now() + LIMIT;
            let mut count = 0;
            loop {
                count += 1;
                let stream = TcpStream::connect_timeout(&CACHE, LIMIT);
                stream.context("a connection was refused")?;
                let mut client = Memcached::connect(CACHE, LIMIT).context("refused")?;
                // Connections that the dying engine had accepted may close.
                if let Ok(found) = client.get("keep") {
                    ensure!(found.as_deref() == Some(value), "the content is gone");
                    return Ok(count);
                }
                ensure!(Instant::now() < deadline, "no answer in {LIMIT:?}");
            }
        })
    }

    /// Is the killed engine gone altogether, and another one there?
    pub(crate) fn settled(&self) -> Result<()> {
        let killed = self.killed.context("nothing was killed")?;
        ensure!(fs::metadata(format!("/proc/{killed}")).is_err(), "{killed} is still there");
        self.engine().map(drop)
    }
}
