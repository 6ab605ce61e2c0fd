//! The demo against a cache that is forgetful, slow or gone when the test says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::session_id;

/// How a fake cache fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Stores, but closes instead of saying so, once.
    CloseAfterStore,
    /// Says nothing.
    Silent,
}

#[derive(Debug)]
struct Store {
    items: Mutex<HashMap<String, (String, u64)>>,
    fault: Mutex<Fault>,
    stores: AtomicUsize,
}

/// Starts a cache with just enough of the protocol.
async fn cache(fault: Fault) -> (std::net::SocketAddr, Arc<Store>) {
    let store = Arc::new(Store {
        items: Mutex::default(),
        fault: Mutex::new(fault),
        stores: AtomicUsize::new(0),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, theirs) = (listener.local_addr().unwrap(), Arc::clone(&store));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, Arc::clone(&theirs)));
        }
    });
    (address, store)
}

async fn converse(stream: TcpStream, store: Arc<Store>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = words[1].to_owned();
        let answer = if words[0] == "gets" {
            match store.items.lock().get(&key) {
                Some((value, cas)) => {
                    format!("VALUE {key} 74 {} {cas}\r\n{value}\r\nEND\r\n", value.len())
                }
                None => "END\r\n".to_owned(),
            }
        } else {
            assert_eq!(words[2..4], ["74", "1800"], "flags and expiry");
            let mut value = vec![0; words[4].parse::<usize>().unwrap() + 2];
            stream.read_exact(&mut value).await.unwrap();
            value.truncate(value.len() - 2);
            let value = String::from_utf8(value).unwrap();
            let expected = words.get(5).map(|word| word.parse::<u64>().unwrap());
            let mut items = store.items.lock();
            if items.get(&key).map(|(_, cas)| *cas) == expected {
                let cas = store.stores.fetch_add(1, Ordering::SeqCst) as u64 + 1;
                items.insert(key, (value, cas));
                "STORED\r\n".to_owned()
            } else {
                "EXISTS\r\n".to_owned()
            }
        };
        let fault = *store.fault.lock();
        match fault {
            Fault::Silent => continue,
            Fault::CloseAfterStore if answer == "STORED\r\n" => {
                *store.fault.lock() = Fault::None;
                return;
            }
            Fault::None | Fault::CloseAfterStore => {}
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn site(cache: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { super::serve(listener, "blue", cache).await });
    address
}

/// An answer's text and the cookie it sets.
async fn get(site: std::net::SocketAddr, path: &str, cookie: &str) -> (String, String) {
    let mut stream = TcpStream::connect(site).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: "));
    let cookie = cookie.map_or("", |line| line.split(';').next().unwrap()).to_owned();
    (answer, cookie)
}

#[tokio::test]
async fn visits_are_counted_in_the_cache() {
    let (cache, _store) = cache(Fault::None).await;
    let site = site(cache).await;
    let (answer, cookie) = get(site, "/text", "a=b").await;
    assert!(answer.ends_with(" visits=1\n"), "{answer}");
    assert!(cookie.starts_with("JSESSIONID=") && cookie.ends_with(".blue"), "{cookie}");
    let elsewhere = cookie.replace(".blue", ".red");
    let (answer, again) = get(site, "/text", &format!("x=y; {elsewhere}")).await;
    assert!(answer.ends_with(" visits=2\n"), "{answer}");
    assert_eq!(again, cookie, "the same session, this backend's route");
    let (answer, _) = get(site, "/", &cookie).await;
    assert!(answer.contains("<div class=\"count\">3</div>"), "{answer}");
}

#[tokio::test]
async fn a_session_the_cache_does_not_know_is_not_taken_over() {
    let (cache, _store) = cache(Fault::None).await;
    let site = site(cache).await;
    let foreign = format!("JSESSIONID={}.blue", "a".repeat(32));
    let (answer, cookie) = get(site, "/text", &foreign).await;
    assert!(answer.ends_with(" visits=1\n"), "{answer}");
    assert_ne!(cookie, foreign);
}

#[tokio::test]
async fn a_lost_answer_does_not_count_twice() {
    let (cache, store) = cache(Fault::None).await;
    let site = site(cache).await;
    let (_, cookie) = get(site, "/text", "").await;
    *store.fault.lock() = Fault::CloseAfterStore;
    let (answer, _) = get(site, "/text", &cookie).await;
    assert!(answer.ends_with(" visits=2\n"), "{answer}");
    assert_eq!(store.stores.load(Ordering::SeqCst), 2);
    *store.fault.lock() = Fault::CloseAfterStore;
    let (answer, _) = get(site, "/text", "").await;
    assert!(answer.ends_with(" visits=1\n"), "a new session, too: {answer}");
    assert_eq!(store.stores.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_cache_that_is_silent_or_gone_is_named() {
    let (silent, _store) = cache(Fault::Silent).await;
    let (answer, _) = get(site(silent).await, "/text", "").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("did not answer within 1s"), "{answer}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (answer, _) = get(site(gone).await, "/", "").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("refused"), "{answer}");
}

#[tokio::test]
async fn slow_and_bytes_do_what_they_say() {
    let site = site("127.0.0.1:1".parse().unwrap()).await;
    let (answer, _) = get(site, "/slow?ms=5", "").await;
    assert!(answer.ends_with("backend=blue slept_ms=5\n"), "{answer}");
    let (answer, _) = get(site, "/bytes?n=1000", "").await;
    assert!(answer.ends_with(&"x".repeat(1000)), "{answer}");
    let (answer, _) = get(site, "/other", "").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[test]
fn only_our_own_ids_are_sessions() {
    let id = "0123456789abcdef0123456789abcdef";
    assert_eq!(session_id(&format!(" JSESSIONID={id}.red")), Some(id));
    assert_eq!(session_id(&format!("JSESSIONID={id}")), Some(id));
    for pair in ["JSESSIONID=x.red", "XJSESSIONID=", &format!("JSESSIONID={id}0"), ""] {
        assert_eq!(session_id(pair), None, "{pair}");
    }
}
