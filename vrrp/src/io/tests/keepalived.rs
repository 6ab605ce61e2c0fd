//! keepalived as the other router, on `vb`: our adverts are accepted by it, and its by us, in both
//! roles, in version 3 and in version 2 with a password. Skipped, saying so, where it is not
//! installed (`apt-get install keepalived`).

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::config::{Auth, InstanceConfig, Mode, Vrid};
use crate::{AdvertInterval, Instance, Output, Priority, State, Version};

/// A running keepalived and its directory; both gone on drop.
struct Keepalived {
    child: Child,
    directory: PathBuf,
}

impl Keepalived {
    /// In the namespace of this thread; `None` if it is not installed.
    fn start(version: Version, interval: &str, auth: &str) -> Option<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vrrp-keepalived-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let config = format!(
            "global_defs {{\n vrrp_version {version}\n}}\n\
             vrrp_instance test {{\n state BACKUP\n interface vb\n virtual_router_id 51\n \
             priority 100\n advert_int {interval}\n {auth}\n \
             virtual_ipaddress {{\n 10.99.0.100/32\n }}\n}}\n"
        );
        let path = |file: &str| directory.join(file);
        fs::write(path("keepalived.conf"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let child = Command::new("keepalived")
            .args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"])
            .args(["--use-file".into(), path("keepalived.conf")])
            .args(["--pid".into(), path("pid")])
            .args(["--vrrp_pid".into(), path("vrrp.pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        match child {
            Ok(child) => Some(Self { child, directory }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                println!("SKIPPED: keepalived is not installed");
                fs::remove_dir_all(&directory).ok();
                None
            }
            Err(e) => panic!("keepalived: {e}"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("keepalived's log:\n{}", self.log());
        }
        // in order: it stops its own child and removes the address
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// The smallest shell: an instance, its socket, real time.
struct Router<'a> {
    pair: &'a Pair,
    instance: Instance,
    socket: AdvertSocket,
    garp: FrameSender,
    vb: u32,
}

impl<'a> Router<'a> {
    fn start(pair: &'a Pair, version: Version, interval: AdvertInterval, auth: Auth) -> Self {
        let vrid = Vrid::new(51).unwrap();
        let config = InstanceConfig {
            version,
            auth,
            priority: Priority::new(200),
            mode: Mode::Coupled { peer: Some(B.into()) },
            ..InstanceConfig::coupled(vrid, interval, vec![VIP.into()], A.into())
        };
        let va = pair.va();
        let mut instance = Instance::new(config).unwrap();
        instance.startup(now());
        Self {
            pair,
            instance,
            socket: AdvertSocket::open(&va, A).unwrap(),
            garp: FrameSender::open(&va).unwrap(),
            vb: pair.vb().index,
        }
    }

    /// Drives the instance until `done`, which sees each output; returns how long it took.
    fn run(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Self, Option<&Output>) -> bool,
    ) -> Duration {
        let start = now();
        let limit = Duration::from_secs(15);
        loop {
            while let Some(datagram) = self.socket.receive().unwrap() {
                let heard = self.instance.handle_advert(now(), &datagram.received());
                assert_eq!(heard, Ok(()), "{what}: keepalived's advert refused: {datagram:?}");
            }
            self.instance.handle_timeout(now());
            while let Some(output) = self.instance.poll_output() {
                match &output {
                    Output::SendAdvert { payload, .. } => self.socket.send(payload).unwrap(),
                    Output::Garp { .. } => self.garp.announce(&[VIP.into()]).unwrap(),
                    _ => {}
                }
                if done(self, Some(&output)) {
                    return now() - start;
                }
            }
            if done(self, None) {
                return now() - start;
            }
            assert!(now() - start < limit, "not within {limit:?}: {what}");
            readable(&self.socket, Duration::from_millis(5));
        }
    }

    /// Whether keepalived has put the VIP on `vb`, that is, believes to be master.
    fn keepalived_holds_the_vip(&self) -> bool {
        self.pair.enter_b();
        let held = addresses_of(self.vb).contains(&VIP.into());
        self.pair.enter_a();
        held
    }
}

fn both_roles(version: Version, interval: AdvertInterval, auth: Auth, keywords: (&str, &str)) {
    Pair::run(|pair| {
        pair.enter_b();
        let Some(keepalived) = Keepalived::start(version, keywords.0, keywords.1) else { return };
        pair.enter_a();
        let mut router = Router::start(pair, version, interval, auth);
        let contact = |o: Option<&Output>| matches!(o, Some(Output::PeerContact { .. }));
        router.run("keepalived's first advert is accepted", |_, o| contact(o));
        until("keepalived holds the VIP", || router.keepalived_holds_the_vip());
        assert_eq!(router.instance.state(), State::Backup);

        // ours with priority 200 deposes it
        router.instance.promote(now());
        let yielded = router.run("keepalived yields", |r, _| !r.keepalived_holds_the_vip());
        let mut adverts = 0;
        router.run("and keeps quiet", |_, o| {
            // one that was on its way may still arrive before our next
            assert!(adverts == 0 || !contact(o), "keepalived still advertises");
            adverts += u32::from(matches!(o, Some(Output::SendAdvert { .. })));
            adverts == 6
        });

        // priority 0: it takes over after its skew alone
        router.instance.resign(now(), true);
        let taken = router.run("keepalived takes over", |_, o| contact(o));
        let skew = crate::timers::skew(version, Priority::new(100), interval);
        println!(
            "version {version}: yielded in {yielded:?}, took over in {taken:?}, skew {skew:?}"
        );
        assert!(taken >= skew.mul_f32(0.9), "{taken:?}, before its skew of {skew:?}");
        assert!(taken < interval.duration() * 2 + skew, "{taken:?}: a silence, not a resignation");

        // and its own resignation reaches us
        drop(keepalived);
        let resigned = |o: Option<&Output>| matches!(o, Some(Output::PeerResigned { .. }));
        router.run("keepalived's priority 0", |_, o| resigned(o));
        assert_eq!(router.instance.counters().refused, [0; crate::Refusal::KINDS]);
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn version_3_both_roles() {
    // wide enough to tell its skew from a silence on a loaded machine
    let interval = AdvertInterval::from_centiseconds(50).unwrap();
    both_roles(Version::V3, interval, Auth::None, ("0.5", ""));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn version_2_with_a_password_both_roles() {
    let auth = "authentication {\n auth_type PASS\n auth_pass seed1234\n }";
    let interval = AdvertInterval::DEFAULT;
    both_roles(Version::V2, interval, Auth::Simple(*b"seed1234"), ("1", auth));
}
