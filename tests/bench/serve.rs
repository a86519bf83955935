//! The server of Rails and bare hyper: hyper on one thread, on a TCP port and a unix socket.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use http_body::Body;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{LocalSet, spawn_local};

use crate::Fallible;

/// The usual 128 is too little for dozens of fresh connections at once.
const BACKLOG: i32 = 4096;

/// Serves both sockets until the process is killed, and runs `task` beside.
pub(crate) fn forever<H, A, B>(
    port: u16,
    socket: &Path,
    task: impl Future<Output = ()> + 'static,
    handle: H,
) -> Fallible<()>
where
    H: Fn(Request<Incoming>) -> A + Clone + 'static,
    A: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        spawn_local(task);
        let unix = UnixListener::from_std(listen(&SockAddr::unix(socket)?)?.into())?;
        let tcp = listen(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        let tcp = TcpListener::from_std(tcp.into())?;
        loop {
            tokio::select! {
                accepted = tcp.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    spawn_local(serve(TokioIo::new(stream), handle.clone()));
                }
                accepted = unix.accept() => {
                    spawn_local(serve(TokioIo::new(accepted?.0), handle.clone()));
                }
            }
        }
    })
}

fn listen(address: &SockAddr) -> Fallible<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    if address.domain() == Domain::IPV4 {
        socket.set_reuse_address(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn serve<S, H, A, B>(stream: S, handle: H)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin,
    H: Fn(Request<Incoming>) -> A,
    A: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    // Clients may disconnect.
    let _ = http1::Builder::new().serve_connection(stream, service_fn(handle)).await;
}
