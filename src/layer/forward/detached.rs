//! A request that goes on without its client, once Rails has it.
//!
//! For requests that any client can send: a client that hangs up does not stop Rails, so the permit of its request is
//! only given back when Rails has answered. Otherwise a client could keep all threads of Rails busy by hanging up. A
//! request that Rails does not have yet ends with its client.

use std::future::Future;
use std::sync::Arc;

use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use crate::upstream::SendStage;

/// Runs `exchange` as a task. Dropping the future that this returns aborts it while Rails does not have the request,
/// according to `stage`. `None` if the task panicked, which has been logged.
pub(super) async fn run_detached<T: Send + 'static>(
    tasks: &TaskTracker,
    stage: Arc<SendStage>,
    exchange: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let task = tasks.spawn(exchange);
    let _client = Client { stage, task: task.abort_handle() };
    task.await.ok()
}

/// Dropped when the client leaves, or has its response.
struct Client {
    stage: Arc<SendStage>,
    task: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.stage.abandon() {
            self.task.abort();
        }
    }
}
