//! What kas sends at once after a pause: its own bound is 50 requests a second, 250 in a burst.

use super::client::Ask;
use super::fake::{Reply, Valve};
use super::stage::Setup;

const BURST: usize = 250;
/// Of which Rails gets so many at one time.
const AT_ONCE: usize = 100;

/// None of them is refused, and Rails has threads left for those who log in.
#[tokio::test]
async fn a_burst_of_kas_waits_for_its_turn() {
    let stage = Setup::new().text("upstream.classes.kas.queue_timeout", "10m").start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let ask = Ask::get("agents/agentk/agent_info").with_kas_token();
    let mut wires = Vec::new();
    for _ in 0..BURST {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("keep-alive")).await;
        wires.push(wire);
    }
    stage.reaches(r#"railgate_upstream_in_flight{class="kas"}"#, AT_ONCE).await;
    stage.reaches(r#"railgate_upstream_queue{class="kas"}"#, BURST - AT_ONCE).await;
    stage.rails.has_got(AT_ONCE).await;
    // Meanwhile another class goes on.
    let mut login = stage.begin(&Ask::get("discover?key_id=1").with_secret()).await;
    stage.rails.has_got(AT_ONCE + 1).await;
    valve.open();
    assert_eq!(login.answer().await.status, 200);
    for mut wire in wires {
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(stage.rails.count(), BURST + 1);
}
