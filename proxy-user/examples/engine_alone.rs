//! An engine without a guardian, MASTER_SOLO for ever: to measure and to profile the data path.
//!
//! `engine_alone run --config FILE` serves the `[cache]` and `[[http]]` of an ordinary
//! configuration until it is killed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proxy_user::config;
use proxy_user::control::message::{self, Secret, Snapshot};
use proxy_user::control::role::State;
use proxy_user::control::shared::SharedPage;
use proxy_user::engine::start::{Engine, Start};
use proxy_user::engine::worker::Events;
use socket2::{Domain, Socket, Type};

const EPOCH: u16 = 2;

fn main() -> Result<()> {
    let file = std::env::args().next_back().context("a configuration file is wanted")?;
    let text = std::fs::read_to_string(&file).context(file.clone())?;
    let config = config::parse(&text, &file).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let workers = config.engine.workers.unwrap_or(1);
    let (page, _page_fd) = SharedPage::create(workers)?;
    let mut services: Vec<(message::Service, SocketAddr)> = Vec::new();
    for address in config.cache.iter().flat_map(|cache| &cache.listen) {
        services.push((message::Service::Cache, *address));
    }
    for (index, http) in (0..).zip(&config.http) {
        services.extend(http.listen.iter().map(|at| (message::Service::Http(index), *at)));
    }
    let (mut posts, mut listeners) = (Vec::new(), Vec::new());
    for (service, address) in services {
        for worker in 0..workers {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            posts.push(message::Listener { worker, service, address });
            listeners.push(OwnedFd::from(socket));
        }
    }
    let store = match config.cache {
        Some(_) => Some(memfd_create("store", MFdFlags::MFD_CLOEXEC)?),
        None => None,
    };
    let snapshot = Snapshot {
        version: message::VERSION,
        node: config.node.name,
        workers,
        io: config.engine.io,
        generation: 0,
        cache: config.cache,
        hash_key: Secret([7; 16]),
        http: config.http,
        upstreams: config.upstreams,
        listeners: posts,
        link: None,
        log: config.log,
        identity: None,
    };
    let start = Start { snapshot, page, store, listeners, access_log: None };
    let engine = Engine::start(start, Events::new(drop))?;
    eprintln!("{:?}", engine.hello());
    if let Some(service) = &engine.shared().cache {
        service.cache.promote(EPOCH)?;
    }
    page.set_lease(u64::MAX);
    page.set_role(State::MasterSolo, EPOCH);
    engine.shared().wake_all();
    loop {
        std::thread::park();
    }
}
