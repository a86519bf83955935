//! The status page in Chromium (Debian's package), with a load running: its figures, its keys, its names for screen
//! readers, on a screen, on a phone and in the dark. It leaves pictures in `target/tmp`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::browser::Browser;
use super::client::{Address, Request};
use super::fake_rails::{FakeRails, ROOT_KEY, UNKNOWN_KEY};
use super::harness::{Harness, RunningGateway, Setup};
use super::valkey::Valkey;

/// Requests of many kinds, until it is told to stop.
async fn load(clients: Address, is_running: Arc<AtomicBool>) {
    let key = |key: &str| Request::get(&format!("authorized_keys?key={key}")).with_secret();
    let mut nth = 0;
    while is_running.load(Ordering::Relaxed) {
        nth += 1;
        for request in [
            key(ROOT_KEY),
            key(UNKNOWN_KEY),
            Request::get(&format!("discover?key_id={}", nth % 40)).with_secret(),
            Request::post("allowed").with_secret().json("{}"),
            Request::get("check").with_secret(),
            Request::get("check"),
            Request::get("kubernetes/agent_info").with_kas_token(),
            Request::get("check;a=b").with_secret(),
        ] {
            clients.send(&request).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The rows of a table of the page, by their first cells.
async fn table(browser: &mut Browser, id: &str) -> Vec<Vec<String>> {
    let rows = format!(
        "Array.from(document.querySelectorAll('#{id} tbody tr'), row => Array.from(row.cells, cell => cell.textContent))"
    );
    serde_json::from_value(browser.evaluate(&rows).await).unwrap()
}

/// The sum of the series of `/metrics` that have all these labels.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

fn number(text: &str) -> u64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text:?}"))
}

async fn assert_figures_are_those_of_the_metrics(browser: &mut Browser, gateway: &RunningGateway) {
    let metrics = gateway.metrics().await;
    let requests = "railgate_requests_total";
    let all = sum(&metrics, requests, &[]);
    let shown = format!(
        "Array.from(document.querySelectorAll('#routes tbody tr'), row => +row.cells[1].textContent.replace(/,/g, '')).reduce((a, b) => a + b, 0) === {all}"
    );
    browser.wait_for(&shown).await;
    let rows = table(browser, "routes").await;
    assert!(rows.len() >= 6, "{rows:?}");
    for row in rows {
        let route = format!("route=\"{}\"", row[0]);
        let of = |labels: &[&str]| {
            labels
                .iter()
                .map(|label| sum(&metrics, requests, &[&route, &format!("\"{label}\"")]))
                .sum::<u64>()
        };
        let expected = [
            sum(&metrics, requests, &[&route]),
            of(&["hit", "fleet"]),
            of(&["stale_while_revalidate", "stale_if_error"]),
            of(&["miss_stored", "miss_unstored", "shared", "alone", "bypass", "never"]),
            sum(&metrics, requests, &[&route, "cache=\"none\""]),
            of(&["5xx"]),
        ];
        assert_eq!(row[1..].iter().map(|cell| number(cell)).collect::<Vec<_>>(), expected, "{route}");
    }
    for row in table(browser, "failures").await {
        let reason = format!("reason=\"{}\"", row[0]);
        assert_eq!(number(&row[1]), sum(&metrics, "railgate_failures_total", &[&reason]), "{reason}");
    }
    for row in table(browser, "rejections").await {
        let reason = format!("reason=\"{}\"", row[0]);
        assert_eq!(number(&row[1]), sum(&metrics, "railgate_auth_refusals_total", &[&reason]), "{reason}");
    }
    for row in table(browser, "stores").await {
        let store = format!("store=\"{}\"", row[0]);
        assert_eq!(number(&row[1]), sum(&metrics, "railgate_cache_entries", &[&store]), "{store}");
        assert_eq!(number(&row[3]), sum(&metrics, "railgate_cache_fills_total", &[&store]), "{store}");
    }
    let memory = &table(browser, "latency").await[0];
    let hits = metrics.lines().find_map(|line| line.strip_prefix("railgate_hit_duration_seconds_count "));
    assert_eq!(Some(memory[1].replace(',', "").as_str()), hits, "{memory:?}");
    assert_eq!(table(browser, "last").await.len(), 50);
}

/// What gets the focus by Tab, in order, and whether it can be seen.
async fn focus_order(browser: &mut Browser) -> Vec<String> {
    browser.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)").await;
    let mut order = Vec::new();
    for _ in 0..40 {
        browser.press("Tab").await;
        let focused = browser
            .evaluate(
                "(() => { const is = document.activeElement, style = getComputedStyle(is); \
                 return [is.id || is.getAttribute('aria-label') || is.textContent.trim(), \
                 style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, is === document.body] })()",
            )
            .await;
        if focused[2] == true {
            break;
        }
        assert_eq!(focused[1], true, "no outline: {focused}");
        order.push(focused[0].as_str().unwrap().to_owned());
    }
    order
}

/// The roles and names that a screen reader finds.
async fn accessible(browser: &mut Browser) -> Vec<(String, String)> {
    let tree = browser.send("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false);
    let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
    nodes.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
}

#[tokio::test]
async fn the_status_page_works_in_a_browser_under_load() {
    let setup = Setup::new();
    let token = setup.dir.file("admin_token");
    fs::write(&token, "t0ken\n").unwrap();
    let valkey = Valkey::start().await;
    let in_fleet = |setup: Setup| setup.text("fleet.url", &valkey.url()).text("fleet.identity", "test");
    let setup = in_fleet(setup)
        .text("admin.token_file", &token.display().to_string())
        .text("upstream.health.interval", "0s");
    let other = in_fleet(Setup::new()).start().await;
    let rails = [FakeRails::listen_tcp().await, FakeRails::listen_tcp().await];
    let servers =
        rails.iter().map(|rails| format!("[[upstream.server]]\nurl = \"{}\"\n", rails.address.url()));
    let gateway = RunningGateway::start(setup.settings_with_servers(&servers.collect::<String>()));
    let is_running = Arc::new(AtomicBool::new(true));
    let loads: Vec<_> =
        (0..4).map(|_| tokio::spawn(load(gateway.tcp.clone(), Arc::clone(&is_running)))).collect();

    let mut browser = Browser::start().await;
    browser.resize(1280, 800).await;
    browser.open(&gateway.admin.url()).await;
    browser.wait_for("document.querySelector('#live').textContent === 'live'").await;
    // Charts have lines once there are two samples.
    browser.wait_for("/L/.test(document.querySelector('svg .one').getAttribute('d'))").await;
    assert_charts_show_fifteen_minutes(&mut browser).await;
    assert_fleet_is_shown(&mut browser, &other).await;
    take_pictures(&mut browser).await;

    // By keyboard alone: the token, then a server is drained.
    let order = focus_order(&mut browser).await;
    let names: Vec<_> = order.iter().map(String::as_str).collect();
    assert_eq!(
        names[..7],
        ["Skip to the figures", "Traffic", "Rails", "Refusals", "Cache", "fleet-link", "Process"],
        "{order:?}"
    );
    let place =
        |name: &str| names.iter().position(|is| *is == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    assert!(place("Traffic by endpoint") < place("token") && place("token") < place("Servers of Rails"));
    let button = "#server-table tbody tr:first-child button";
    assert_eq!(browser.evaluate(&format!("document.querySelector('{button}').disabled")).await, true);
    browser.evaluate("document.querySelector('#token').focus()").await;
    browser.send("Input.insertText", json!({ "text": "wrong" })).await;
    browser.press("Enter").await;
    browser.evaluate(&format!("document.querySelector('{button}').focus()")).await;
    browser.press("Enter").await;
    browser.wait_for("document.querySelector('#outcome').textContent.includes('was not changed: 401')").await;
    let refused = browser.complaints();
    assert!(refused.len() == 1 && refused[0].contains("401"), "{refused:?}");
    browser.evaluate("document.querySelector('#token').focus()").await;
    browser.send("Input.insertText", json!({ "text": "t0ken" })).await;
    browser.press("Enter").await;
    browser.evaluate(&format!("document.querySelector('{button}').focus()")).await;
    browser.press("Enter").await;
    browser.wait_for("/ is now drained$/.test(document.querySelector('#announce').textContent)").await;
    assert_eq!(browser.evaluate("document.activeElement.textContent").await, "Undrain", "the focus stays");
    let kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, document.querySelector('#token').value, location.href]).includes('t0ken')";
    assert_eq!(browser.evaluate(kept).await, false, "the token is only in memory");
    gateway.wait_for_metric(&drained(&rails[0]), 1).await;
    browser.press("Enter").await;
    gateway.wait_for_metric(&drained(&rails[0]), 0).await;

    let accessible = accessible(&mut browser).await;
    let has = |role: &str, name: &str| accessible.iter().any(|(is, of)| is == role && of.contains(name));
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("navigation", "Sections"),
        ("status", ""),
        ("table", "Requests by endpoint and outcome"),
        ("table", "Servers"),
        ("table", "Other gateways"),
        ("columnheader", "From memory"),
        ("rowheader", "authorized_keys"),
        ("image", "Hit ratio, last 15 minutes: hits now"),
        ("textbox", "Token of operators"),
        ("button", "Drain 127.0.0.1:"),
    ] {
        assert!(has(role, name), "{role} {name}: {accessible:?}");
    }
    assert!(accessible.iter().filter(|(role, _)| role == "image").all(|(_, name)| !name.is_empty()));

    is_running.store(false, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    gateway.wait_for_metric("railgate_requests_in_flight", 0).await;
    assert_figures_are_those_of_the_metrics(&mut browser, &gateway).await;
    assert_eq!(browser.complaints(), refused, "nothing else was complained about");
    gateway.drain();
    browser.wait_for("document.querySelector('#live').textContent.startsWith('not live')").await;
}

/// Replaces the samples by made-up ones of fifteen minutes with a gap, for the pictures too.
async fn assert_charts_show_fifteen_minutes(browser: &mut Browser) {
    let lines = browser
        .evaluate(
            "(() => {
                const end = samples.at(-1).at, wave = (nth, all) => all * (2 + Math.sin(nth / 9) + Math.sin(nth / 2) / 5);
                samples = Array.from({ length: 150 }, (_, nth) => ({
                    at: end - 6 * (149 - nth), requests: wave(nth, 300), hits: wave(nth, 250), errors: nth > 120 ? 4 : 0,
                    refused: wave(nth, 3), hit_ratio: 0.9 + 0.05 * Math.sin(nth / 7), hit_p50: wave(nth, 4e-5),
                    hit_p99: wave(nth, 2e-4), rails_p50: nth > 60 && nth < 80 ? null : wave(nth, 4e-3),
                    rails_p99: nth > 60 && nth < 80 ? null : wave(nth, 2e-2), waiting: nth > 100 ? nth - 100 : 0,
                    connections: Math.round(wave(nth, 40)),
                }));
                draw();
                return Array.from(document.querySelectorAll('svg .line'), line => line.getAttribute('d'));
            })()",
        )
        .await;
    let lines: Vec<String> = serde_json::from_value(lines).unwrap();
    assert_eq!(lines.len(), 11);
    for line in lines {
        let points: Vec<f64> = line.split(['M', 'L', ' ']).filter_map(|part| part.parse().ok()).collect();
        let (xs, ys): (Vec<f64>, Vec<f64>) = points.chunks(2).map(|point| (point[0], point[1])).unzip();
        assert!(xs[0] < 3.0 && (xs.last().unwrap() - 300.0).abs() < 0.1, "{line}");
        assert!(xs.is_sorted() && ys.iter().all(|y| (0.0..=90.0).contains(y)), "{line}");
        let gaps = line.matches('M').count() - 1;
        assert_eq!(gaps, usize::from(xs.len() < 150), "{line}");
    }
}

/// On a screen and on a phone, in the light and in the dark. Nothing is wider than its screen.
async fn take_pictures(browser: &mut Browser) {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (name, width, height, scheme) in [
        ("status-1280", 1280, 800, "light"),
        ("status-dark", 1280, 800, "dark"),
        ("status-360", 360, 740, "light"),
        ("status-360-dark", 360, 740, "dark"),
    ] {
        browser.resize(width, height).await;
        browser.prefer(scheme).await;
        browser.screenshot(&pictures.join(format!("{name}.png")), false).await;
        browser.screenshot(&pictures.join(format!("{name}-whole.png")), true).await;
        let overflow = browser.evaluate("document.documentElement.scrollWidth").await;
        assert_eq!(overflow, width, "{name} scrolls sideways");
    }
    let columns = browser
        .evaluate("getComputedStyle(document.querySelector('#charts')).gridTemplateColumns.split(' ').length")
        .await;
    assert_eq!(columns, 1, "one column on a phone");
    browser.resize(1280, 800).await;
    browser.prefer("light").await;
}

/// The panel has the state of this gateway, and the other one; without a fleet it is hidden.
async fn assert_fleet_is_shown(browser: &mut Browser, other: &Harness) {
    browser.wait_for("document.querySelector('#members th[scope=row]') !== null").await;
    let metrics = other.metrics().await;
    let info = metrics.lines().find(|line| line.starts_with("railgate_fleet_info{")).unwrap();
    let members = table(browser, "members").await;
    assert!(members.len() == 1 && info.contains(&format!("process=\"{}\"", members[0][0])), "{members:?}");
    let rows = table(browser, "fleet-table").await;
    assert!(rows.contains(&vec!["state".to_owned(), "following".to_owned()]), "{rows:?}");
    let hidden = "['fleet', 'fleet-link'].map(id => document.getElementById(id).hidden)";
    assert_eq!(browser.evaluate(hidden).await, json!([false, false]));
    // At once: the page shows the fleet again as soon as it has asked for it.
    assert_eq!(browser.evaluate(&format!("(showFleet(null), {hidden})")).await, json!([true, true]));
    browser.evaluate("show(shown)").await;
    // What is not as it should be is said at the top.
    let state = "(state => { show({ ...shown, fleet: { ...shown.fleet, state } }); \
                 return document.querySelector('#state').textContent })";
    for (name, words) in [("alone", "Does not hear the fleet"), ("untold", "Cannot tell the fleet")] {
        let shown = browser.evaluate(&format!("{state}('{name}')")).await;
        assert!(shown.as_str().unwrap().contains(words), "{shown}");
    }
    let shown = browser.evaluate(&format!("{state}('following')")).await;
    assert!(!shown.as_str().unwrap().contains("fleet"), "{shown}");
}

fn drained(rails: &FakeRails) -> String {
    let Address::Tcp(address) = &rails.address else { panic!() };
    format!(r#"railgate_upstream_server_state{{server="{address}",state="drained"}}"#)
}
