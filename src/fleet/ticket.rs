//! What becomes of a purge, for the one who has it told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::counters::{FleetCounters, Told};

/// How long the caller waits.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Tells what became of a purge.
#[derive(Debug)]
pub struct Ticket(Option<(oneshot::Receiver<Told>, Arc<FleetCounters>)>);

impl Ticket {
    /// Without a fleet.
    pub const OFF: Self = Self(None);

    /// For the one who has it told.
    pub fn new(told: oneshot::Receiver<Told>, counters: Arc<FleetCounters>) -> Self {
        Self(Some((told, counters)))
    }

    /// What became of it, if that is known, for one who does not wait.
    #[cfg(test)]
    pub(super) fn outcome_now(&mut self) -> Option<Told> {
        let (told, _) = self.0.as_mut()?;
        told.try_recv().ok()
    }

    /// Waits for up to a second.
    pub async fn outcome(self) -> Told {
        let Some((told, counters)) = self.0 else { return Told::Off };
        let told = match tokio::time::timeout(MAX_WAIT, told).await {
            Ok(Ok(told)) => told,
            // Valkey does not answer, or too much waits for it.
            Ok(Err(_)) | Err(_) => Told::Queued,
        };
        counters.told.increment(told);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_for_a_second_at_most() {
        let (counters, begin) = (Arc::<FleetCounters>::default(), tokio::time::Instant::now());
        let (sender, told) = oneshot::channel();
        assert_eq!(Ticket::new(told, Arc::clone(&counters)).outcome().await, Told::Queued);
        assert_eq!(begin.elapsed().as_secs(), 1);
        drop(sender);
        let (sender, told) = oneshot::channel();
        sender.send(Told::Unconfirmed).unwrap();
        assert_eq!(Ticket::new(told, Arc::clone(&counters)).outcome().await, Told::Unconfirmed);
        assert_eq!(Ticket::OFF.outcome().await, Told::Off);
        assert_eq!(begin.elapsed().as_secs(), 1);
        let all: Vec<u64> = counters.told.iter().map(|(_, count)| count).collect();
        assert_eq!(all, [0, 1, 1, 0]);
    }
}
