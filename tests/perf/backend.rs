//! The HTTP backend of the comparison: answers any GET by its path's size, keep-alive, one thread.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;

use anyhow::Result;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// Starts one backend thread for each address, on the caller's core and in its namespace.
///
/// # Errors
/// When an address cannot be bound.
pub(crate) fn start(addresses: &[SocketAddr]) -> Result<()> {
    for address in addresses {
        let listener = TcpListener::bind(*address)?;
        thread::spawn(move || {
            if let Err(error) = serve(listener) {
                eprintln!("backend: {error:#}");
            }
        });
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

fn serve(mut listener: TcpListener) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut connections: Vec<Option<Connection>> = vec![None];
    let bodies = [vec![b'x'; 100], vec![b'x'; 16 << 10], vec![b'x'; 1 << 20]].map(|b| answer(&b));
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == Token(0) {
                accept(&listener, &poll, &mut connections)?;
                continue;
            }
            let Some(slot) = connections.get_mut(event.token().0) else { continue };
            let alive = slot.as_mut().is_some_and(|connection| turn(connection, &bodies).is_ok());
            if !alive {
                *slot = None;
            }
        }
    }
}

fn answer(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        stream.set_nodelay(true)?;
        let free = connections.iter().skip(1).position(Option::is_none).map(|index| index + 1);
        let index = free.unwrap_or(connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(index), interest)?;
        let connection = Connection { stream, input: Vec::new(), output: Vec::new(), sent: 0 };
        match connections.get_mut(index) {
            Some(slot) => *slot = Some(connection),
            None => connections.push(Some(connection)),
        }
    }
}

/// Reads what is there, answers each complete head, writes what fits.
fn turn(connection: &mut Connection, bodies: &[Vec<u8>; 3]) -> Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => anyhow::bail!("closed"),
            Ok(length) => {
                connection.input.extend_from_slice(buffer.get(..length).unwrap_or_default());
                if length < buffer.len() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    while let Some(end) = connection.input.windows(4).position(|window| window == b"\r\n\r\n") {
        let size = connection.input.get(5).copied().unwrap_or(b'0');
        let body = usize::from(size.wrapping_sub(b'0')).min(2);
        connection.output.extend_from_slice(&bodies[body]);
        connection.input.drain(..end + 4);
    }
    while connection.sent < connection.output.len() {
        match connection.stream.write(connection.output.get(connection.sent..).unwrap_or_default())
        {
            Ok(length) => connection.sent += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    connection.output.clear();
    connection.sent = 0;
    Ok(())
}
