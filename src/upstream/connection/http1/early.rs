//! A response that comes before its request was sent: the task that sends the rest may not read the response until
//! that is done. So a task of its own moves both bodies, until the response has ended or the client has left. The
//! connection is closed then, and what the client still sends is read and dropped: a client that reads nothing before
//! it has sent everything finds its response.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::connection::Http1Connection;
use super::error::Http1Error;
use crate::body::{Body, BodyFault, BodySource};

/// How long the rest of a request may take once its response has ended. A client sends it only to find the response.
const REST_TIMEOUT: Duration = Duration::from_secs(30);

/// A part of the response, or its end, unless a part before was the last. A task that ends without telling has left the
/// response incomplete.
type Part = Option<Result<Frame<Bytes>, Http1Error>>;

/// Moves both bodies in one of `tasks`, and returns that of the response.
pub(super) fn spawn(connection: Http1Connection, tasks: &TaskTracker) -> Body {
    if connection.has_ended() {
        tasks.spawn(read_rest(connection));
        return Body::empty();
    }
    // One part at a time: the next is read once the client has taken this one.
    let (sender, receiver) = mpsc::channel(1);
    let left = connection.size_hint().exact();
    tasks.spawn(move_both(connection, sender));
    Body::from_source(Box::new(EarlyBody { receiver, left, has_ended: false }))
}

async fn move_both(mut connection: Http1Connection, sender: mpsc::Sender<Part>) {
    loop {
        let mut room = pin!(sender.reserve());
        let room = poll_fn(|cx| {
            // Reading reports what is wrong with the connection.
            let _ = connection.poll_write(cx);
            room.as_mut().poll(cx)
        });
        let Ok(room) = room.await else { return };
        let mut client_left = pin!(sender.closed());
        let part = poll_fn(|cx| match connection.poll_frame(cx) {
            Poll::Pending => client_left.as_mut().poll(cx).map(|()| Err(ClientLeft)),
            Poll::Ready(part) => Poll::Ready(Ok(part)),
        });
        let Ok(part) = part.await else { return };
        let is_last = connection.has_ended() || !matches!(part, Some(Ok(_)));
        room.send(part);
        // A reader that knows the length leaves as soon as it has everything.
        if is_last {
            break;
        }
    }
    drop(sender);
    if connection.has_ended() {
        read_rest(connection).await;
    }
}

struct ClientLeft;

/// Closes the connection to Rails, and reads the rest of the request.
async fn read_rest(connection: Http1Connection) {
    let Some(mut body) = connection.into_request_body() else { return };
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // How it ends is of no interest: the response is there.
    let _ = tokio::time::timeout(REST_TIMEOUT, rest).await;
}

/// The body of the response, as the task passes it on.
#[derive(Debug)]
struct EarlyBody {
    receiver: mpsc::Receiver<Part>,
    /// Bytes still to come, if the head says how many.
    left: Option<u64>,
    has_ended: bool,
}

impl BodySource for EarlyBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let part = match ready!(self.receiver.poll_recv(cx)) {
            Some(part) => part,
            None => Some(Err(Http1Error::Incomplete)),
        };
        self.has_ended = match (&mut self.left, &part) {
            (Some(left), Some(Ok(frame))) => {
                *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                *left == 0
            }
            (None, Some(Ok(frame))) => frame.is_trailers(),
            (_, part) => part.is_none(),
        };
        Poll::Ready(part.map(|part| part.map_err(BodyFault::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn release(self: Box<Self>) {}
}
