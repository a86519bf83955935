//! Server-sent events (HTML §9.2): every listener gets the same.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// How many may listen at one time: each has a connection of the listener for operators.
const MAX_LISTENERS: usize = 16;

/// Where events are sent to.
#[derive(Debug)]
pub(super) struct Events {
    latest: watch::Sender<Bytes>,
    slots: Arc<Semaphore>,
    end: CancellationToken,
}

impl Default for Events {
    fn default() -> Self {
        let slots = Arc::new(Semaphore::new(MAX_LISTENERS));
        Self { latest: watch::Sender::default(), slots, end: CancellationToken::new() }
    }
}

impl Events {
    pub(super) fn has_listeners(&self) -> bool {
        self.latest.receiver_count() > 0
    }

    /// A listener that is slow misses events; it gets the latest one next.
    pub(super) fn send(&self, event: Bytes) {
        self.latest.send_replace(event);
    }

    pub(super) fn listen(&self) -> Option<EventStream> {
        if self.end.is_cancelled() {
            return None;
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let listener = Listener { latest: self.latest.subscribe(), end: self.end.clone(), _slot: slot };
        let events = unfold(listener, |mut listener| async {
            let event = listener.next().await?;
            Some((event, listener))
        });
        Some(EventStream(Box::pin(events)))
    }

    pub(super) fn end(&self) {
        self.end.cancel();
    }
}

struct Listener {
    latest: watch::Receiver<Bytes>,
    end: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Listener {
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            () = self.end.cancelled() => None,
            changed = self.latest.changed() => changed.ok().map(|()| self.latest.borrow_and_update().clone()),
        }
    }
}

/// The body of a response: events until the client disconnects or the gateway drains.
pub struct EventStream(Pin<Box<dyn Stream<Item = Bytes> + Send>>);

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventStream")
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.as_mut().poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn next(stream: &mut EventStream) -> Option<Bytes> {
        stream.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn each_listener_gets_the_latest_event_until_the_end() {
        let events = Events::default();
        assert!(!events.has_listeners());
        let (mut one, mut other) = (events.listen().unwrap(), events.listen().unwrap());
        events.send(Bytes::from_static(b"1"));
        assert_eq!(next(&mut one).await.unwrap(), "1");
        events.send(Bytes::from_static(b"2"));
        assert_eq!(next(&mut other).await.unwrap(), "2", "a slow one gets the latest");
        events.end();
        assert!(next(&mut other).await.is_none());
        assert!(events.listen().is_none());
        drop((one, other));
        assert!(!events.has_listeners());
    }

    #[tokio::test]
    async fn a_slot_is_free_again_once_its_listener_has_left() {
        let events = Events::default();
        let mut listeners: Vec<_> = (0..MAX_LISTENERS).map(|_| events.listen().unwrap()).collect();
        assert!(events.listen().is_none());
        listeners.pop();
        assert!(events.listen().is_some());
    }
}
