//! The servers of the comparison: their configurations, one worker each, pinned to core 0.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::eventually;
use tests::netns::Namespace;
use tests::process::{Process, children_of};
use tests::topology::tandem_binary;

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The two backends behind every proxy.
pub(crate) const BACKENDS: [SocketAddr; 2] = [local(9001), local(9002)];

/// A running server.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Server {
    /// CPU time of the whole process tree so far, kernel workers included.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        let mut queue = vec![self.process.pid()];
        while let Some(pid) = queue.pop() {
            nanoseconds += run_time(pid)?;
            queue.extend(children_of(pid));
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    fn start(
        (namespace, wanted): (&Namespace, &[String]),
        name: &'static str,
        address: SocketAddr,
        config: &str,
        command: impl Fn(&Path) -> Vec<String>,
    ) -> Result<Option<Self>> {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            return Ok(None);
        }
        let folder = tempfile::Builder::new().prefix("tandem-perf").tempdir()?;
        let file = folder.path().join("config");
        fs::write(&file, config.replace("FOLDER", &folder.path().to_string_lossy()))?;
        let words = command(&file);
        let program = words.first().context("a program")?;
        if tests::netns::run("sh", &["-c", &format!("command -v {program}")]).is_err() {
            println!("{name}: {program} is not installed, left out");
            return Ok(None);
        }
        let mut pinned = namespace.command("taskset");
        pinned.args(["-c", "0"]).args(&words);
        let process = Process::start(name, &mut pinned, &folder.path().join("log"))?;
        let server = Self { name, address, process, _folder: folder };
        eventually(&format!("{name} to listen"), Duration::from_secs(10), || {
            Ok(TcpStream::connect_timeout(&address, Duration::from_millis(200)).map(drop)?)
        })
        .with_context(|| server.process.output())?;
        Ok(Some(server))
    }

    /// The proxies; all of them when `wanted` is empty, else those whose name contains one of it.
    pub(crate) fn http(namespace: &Namespace, wanted: &[String]) -> Result<Vec<Self>> {
        let place = (namespace, wanted);
        let words = |list: &[&str], file: &Path| -> Vec<String> {
            list.iter().map(|word| word.replace("FILE", &file.to_string_lossy())).collect()
        };
        let tandem = tandem_binary()?.to_string_lossy().into_owned();
        let all = [
            Self::start(
                place,
                "tandem",
                local(8001),
                &tandem_config("auto", 8001, 11301),
                |file| words(&[&tandem, "run", "--config", "FILE"], file),
            )?,
            Self::start(
                place,
                "tandem epoll",
                local(8004),
                &tandem_config("epoll", 8004, 11304),
                |file| words(&[&tandem, "run", "--config", "FILE"], file),
            )?,
            Self::start(place, "nginx", local(8002), NGINX, |file| {
                words(&["nginx", "-c", "FILE", "-g", "daemon off;"], file)
            })?,
            Self::start(place, "haproxy", local(8003), HAPROXY, |file| {
                words(&["haproxy", "-db", "-f", "FILE"], file)
            })?,
        ];
        Ok(all.into_iter().flatten().collect())
    }

    /// The caches, chosen likewise.
    pub(crate) fn cache(namespace: &Namespace, wanted: &[String]) -> Result<Vec<Self>> {
        let place = (namespace, wanted);
        let tandem = tandem_binary()?.to_string_lossy().into_owned();
        let run = |file: &Path| -> Vec<String> {
            [&tandem, "run", "--config", &*file.to_string_lossy()].map(str::to_owned).to_vec()
        };
        let all = [
            Self::start(place, "tandem", local(11201), &tandem_config("auto", 8011, 11201), run)?,
            Self::start(
                place,
                "tandem epoll",
                local(11204),
                &tandem_config("epoll", 8014, 11204),
                run,
            )?,
            Self::start(place, "memcached", local(11202), "", |_| {
                [
                    "memcached",
                    "-u",
                    "root",
                    "-l",
                    "127.0.0.1",
                    "-p",
                    "11202",
                    "-t",
                    "1",
                    "-m",
                    "256",
                ]
                .map(str::to_owned)
                .to_vec()
            })?,
        ];
        Ok(all.into_iter().flatten().collect())
    }
}

/// Run time of all threads of one process, in nanoseconds.
fn run_time(pid: Pid) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

fn tandem_config(io: &str, http: u16, cache: u16) -> String {
    let admin = http + 1900; // not the backends
    format!(
        r#"
[node]
name = "bench"
state_dir = "FOLDER"

[cache]
listen = ["127.0.0.1:{cache}"]
memory = "256MiB"

[[http]]
listen = ["127.0.0.1:{http}"]
routes = [ {{ host = "*", path = "/", upstream = "bench" }} ]

[upstream.bench]
balance = "round_robin"
servers = [ {{ address = "127.0.0.1:9001" }}, {{ address = "127.0.0.1:9002" }} ]

[engine]
workers = 1
io = "{io}"

[log]
access = "off"

[admin]
listen = "127.0.0.1:{admin}"
"#
    )
}

const NGINX: &str = "
worker_processes 1;
master_process off;
pid FOLDER/nginx.pid;
error_log FOLDER/error.log;
events { worker_connections 4096; multi_accept on; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p; fastcgi_temp_path FOLDER/f;
  uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
  proxy_buffers 16 32k; proxy_max_temp_file_size 0;
  upstream b { server 127.0.0.1:9001; server 127.0.0.1:9002; keepalive 128;
    keepalive_requests 1000000000; }
  server { listen 127.0.0.1:8002 backlog=4096;
    location / { proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; } }
}
";

const HAPROXY: &str = "
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:8003
  default_backend b
backend b
  balance roundrobin
  server s1 127.0.0.1:9001
  server s2 127.0.0.1:9002

";
