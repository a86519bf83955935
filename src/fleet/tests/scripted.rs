//! A server that replies to each command what a test says.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::upstream::UpstreamAddress;

/// The words of a command.
pub(in crate::fleet) type Command<'a> = &'a [String];

/// It ends when it is dropped.
pub(in crate::fleet) struct ScriptedServer {
    pub(in crate::fleet) address: UpstreamAddress,
    _task: AbortOnDropHandle<()>,
}

impl ScriptedServer {
    /// Replies to all commands of all connections with what `reply` makes of them. Those that name a connection are replied to
    /// here.
    pub(in crate::fleet) async fn start(
        reply: impl Fn(Command<'_>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reply = Arc::new(reply);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&reply)));
            }
        });
        let address = UpstreamAddress::Tcp("127.0.0.1".to_owned(), port);
        Self { address, _task: AbortOnDropHandle::new(task) }
    }
}

async fn serve(mut socket: TcpStream, reply: Arc<impl Fn(Command<'_>) -> Vec<u8>>) {
    let mut received = Vec::new();
    while socket.read_buf(&mut received).await.is_ok_and(|count| count > 0) {
        let mut replies = Vec::new();
        while let Some((command, length)) = parse(&received) {
            received.drain(..length);
            let is_name = command.first().is_some_and(|name| name == "CLIENT");
            replies.extend(if is_name { b"+OK\r\n".to_vec() } else { reply(&command) });
        }
        if socket.write_all(&replies).await.is_err() {
            return;
        }
    }
}

/// The first command, and how many bytes it has. `None` if it is not complete.
fn parse(received: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut at = 0;
    let count = number(received, &mut at, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(received, &mut at, b'$')?;
        words.push(String::from_utf8_lossy(received.get(at..at + length)?).into_owned());
        at += length + 2;
    }
    (at <= received.len()).then_some((words, at))
}

fn number(received: &[u8], at: &mut usize, kind: u8) -> Option<usize> {
    let line = received.get(*at..)?;
    let length = line.iter().position(|byte| *byte == b'\n')?;
    assert_eq!(line[0], kind);
    *at += length + 1;
    std::str::from_utf8(&line[1..length - 1]).ok()?.parse().ok()
}

/// Several texts as one reply.
pub(in crate::fleet) fn array(items: &[&[u8]]) -> Vec<u8> {
    [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat()
}

pub(in crate::fleet) fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// What a master that says nothing of itself replies to all commands with which a connection begins.
pub(in crate::fleet) fn reply_as_master(command: Command<'_>) -> Option<Vec<u8>> {
    match command[0].as_str() {
        "ROLE" => Some(array(&[&bulk(b"master"), b":0\r\n", b"*0\r\n"])),
        "INFO" => Some(b"-NOPERM no permissions\r\n".to_vec()),
        _ => None,
    }
}
