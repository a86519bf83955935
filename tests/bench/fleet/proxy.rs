//! A proxy in front of Valkey, which can stop.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::Fallible;

/// Forwards connections to a server. While it is stopped, it accepts and keeps connections, and passes nothing, not even
/// that one has ended. Its threads end with this program.
pub(super) struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The port of the server. None while it is stopped.
    target: Mutex<Option<u16>>,
    is_open: Condvar,
}

impl Proxy {
    pub(super) fn start(target: u16) -> Fallible<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let proxy = Self { port, state: Arc::default() };
        proxy.lead_to(target);
        let state = Arc::clone(&proxy.state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                thread::spawn(move || forward(client, &state));
            }
        });
        Ok(proxy)
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn stop(&self) {
        *self.state.lock() = None;
    }

    /// New connections, and those that were made while it was stopped, lead there. Older ones go on where they were.
    pub(super) fn lead_to(&self, target: u16) {
        *self.state.lock() = Some(target);
        self.state.is_open.notify_all();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Option<u16>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port of the server, once the proxy is not stopped.
    fn wait_until_open(&self) -> u16 {
        let mut target = self.lock();
        loop {
            if let Some(port) = *target {
                return port;
            }
            target = self.is_open.wait(target).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An error of either side ends both.
fn forward(client: TcpStream, state: &Arc<State>) -> Option<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, state.wait_until_open())).ok()?;
    let back = (server.try_clone().ok()?, client.try_clone().ok()?);
    let shared = Arc::clone(state);
    thread::spawn(move || copy(back, &shared));
    copy((client, server), state);
    Some(())
}

fn copy((mut from, mut to): (TcpStream, TcpStream), state: &State) {
    let _ = to.set_nodelay(true);
    let mut buffer = [0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).unwrap_or_default();
        state.wait_until_open();
        let bytes = buffer.get(..count).filter(|bytes| !bytes.is_empty());
        if bytes.is_none_or(|bytes| to.write_all(bytes).is_err()) {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
