//! Files, keys and ports as a user meets them.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::control::keeper::Inherited;
use crate::control::message::Service;

#[test]
fn examples_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    for (name, paired) in [("single.toml", false), ("node-a.toml", true), ("node-b.toml", true)] {
        let config = load(&folder.join(name)).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        assert_eq!(config.node.pair.is_some(), paired, "{name}");
        assert!(config.cache.is_some() && !config.http.is_empty(), "{name}");
    }
}

#[test]
fn keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pair.key");
    assert!(PairKey::read(&path).unwrap_err().to_string().contains("keygen"));
    keygen(&path).unwrap();
    assert!(keygen(&path).unwrap_err().to_string().contains("exists already"));
    let key = PairKey::read(&path).unwrap();
    assert_eq!(key.derive("a"), PairKey::read(&path).unwrap().derive("a"));
    assert_ne!(key.derive("a"), key.derive("b"));
    assert_ne!(key.derive("a"), PairKey::random().unwrap().derive("a"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(PairKey::read(&path).unwrap_err().to_string().contains("chmod 600"));
    std::fs::write(&path, "zz").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(PairKey::read(&path).unwrap_err().to_string().contains("64 hex digits"));
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(cache: SocketAddr, admin: SocketAddr) -> Config {
    let text = format!("[cache]\nlisten = \"{cache}\"\n[admin]\nlisten = \"{admin}\"\n");
    config::parse(&text, "t.toml").unwrap()
}

#[test]
fn each_worker_has_its_listener() {
    let cache = free();
    let listeners =
        Listeners::create(&config(cache, free()), 3, &mut Inherited::default()).unwrap();
    assert_eq!(listeners.fds().count(), 3);
    let workers: Vec<u16> = listeners.descriptions().iter().map(|one| one.worker).collect();
    assert_eq!(workers, [0, 1, 2]);
    assert!(listeners.descriptions().iter().all(|one| one.service == Service::Cache));
    std::net::TcpStream::connect(cache).unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    for config in [config(taken, free()), config(free(), taken)] {
        let refused = Listeners::create(&config, 1, &mut Inherited::default()).unwrap_err();
        assert!(!refused.is_usage());
        let refused = refused.to_string();
        assert!(refused.contains(&format!("port {} is in use", taken.port())), "{refused}");
    }
    // Also when the other one would share it, as a second tandem does.
    let cache = free();
    let _first = Listeners::create(&config(cache, free()), 1, &mut Inherited::default()).unwrap();
    let refused = Listeners::create(&config(cache, free()), 1, &mut Inherited::default())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("[cache] listen"), "{refused}");
}

/// A virtual address is not here yet; any other that is not here is a mistake.
#[test]
fn a_virtual_address_may_be_listened_on_before_it_comes() {
    let port = free().port();
    let config = |listen: &str| {
        let admin = free();
        let text = format!(
            "[cache]\nlisten = \"{listen}:{port}\"\n[admin]\nlisten = \"{admin}\"\n\
             [node]\nname = \"a\"\n\
             [[vip]]\naddress = \"203.0.113.77/24\"\ninterface = \"lo\"\nvrid = 1\n"
        );
        config::parse(&text, "t.toml").unwrap()
    };
    let listeners =
        Listeners::create(&config("203.0.113.77"), 2, &mut Inherited::default()).unwrap();
    assert_eq!(listeners.fds().count(), 2);
    let refused = Listeners::create(&config("203.0.113.78"), 2, &mut Inherited::default())
        .unwrap_err()
        .to_string();
    let named = refused.contains("203.0.113.78") && refused.contains("[cache] listen");
    assert!(named && refused.contains("does not have that address"), "{refused}");
}

#[test]
fn command_line_wins() {
    let mut config = config(free(), free());
    let io = Some(cli::IoChoice::Epoll);
    apply(&cli::Run { config: None, io, workers: Some(7) }, &mut config);
    assert_eq!((config.engine.io, workers(&config)), (config::Io::Epoll, 7));
}
