//! Chromium without a window, driven over the `DevTools` protocol: JSON messages, each ended by a zero byte,
//! over two pipes, so that no port is opened.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

use super::client::within_deadline;
use super::harness::Scratch;

/// A browser with one tab.
pub struct Browser {
    process: Child,
    commands: Sender,
    messages: BufReader<Receiver>,
    session: String,
    next_id: u64,
    /// What the console and the browser have complained about.
    complaints: RefCell<Vec<String>>,
    profile: Scratch,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    pub async fn start() -> Self {
        let profile = Scratch::new();
        let [commands, messages] = ["commands", "messages"].map(|name| profile.file(name));
        let made = Command::new("mkfifo").args([&commands, &messages]).status().unwrap();
        assert!(made.success());
        // Opened for both directions, the pipes are there before the browser is.
        let both = |options: &mut OpenOptions| options.read_write(true).clone();
        let to_browser = both(&mut OpenOptions::new()).open_sender(&commands).unwrap();
        let from_browser = both(&mut OpenOptions::new()).open_receiver(&messages).unwrap();
        let script = r#"exec chromium --headless=new --remote-debugging-pipe --no-sandbox --disable-gpu \
            --disable-dev-shm-usage --no-first-run --disable-background-networking --disable-component-update \
            --disable-extensions --hide-scrollbars --force-color-profile=srgb --user-data-dir="$1" 3<"$2" 4>"$3""#;
        let process = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([profile.path(), &commands, &messages])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(profile.file("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut browser = Self {
            process,
            commands: to_browser,
            messages: BufReader::new(from_browser),
            session: String::new(),
            next_id: 0,
            complaints: RefCell::default(),
            profile,
        };
        let target = browser.send("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.send("Target.attachToTarget", attach).await;
        attached["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.send(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// Sends a command, and returns its result.
    pub async fn send(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        within_deadline("the browser to read", self.commands.write_all(&bytes)).await.unwrap();
        loop {
            let message = self.read().await;
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    async fn read(&mut self) -> Value {
        if let Some(status) = self.process.try_wait().unwrap() {
            let said = fs::read_to_string(self.profile.file("stderr")).unwrap_or_default();
            panic!(
                "chromium has ended ({status}); is Debian's package chromium installed, as tests/run does? {said}"
            );
        }
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(1), self.messages.read_until(0, &mut bytes));
        match read.await {
            Ok(read) => assert!(read.unwrap() > 0),
            // Looks again whether it still runs. What was read of a message until then is in `bytes`.
            Err(_) if bytes.is_empty() => return Value::Null,
            Err(_) => {
                let rest = self.messages.read_until(0, &mut bytes);
                within_deadline("the rest of a message", rest).await.unwrap();
            }
        }
        assert_eq!(bytes.pop(), Some(0));
        serde_json::from_slice(&bytes).unwrap()
    }

    fn note(&self, message: &Value) {
        let params = &message["params"];
        let complaint = match message["method"].as_str() {
            Some("Log.entryAdded") => params["entry"].to_string(),
            Some("Runtime.consoleAPICalled") => params["args"].to_string(),
            Some("Runtime.exceptionThrown") => params["exceptionDetails"].to_string(),
            _ => return,
        };
        self.complaints.borrow_mut().push(complaint);
    }

    /// Violations of the policy, errors and warnings until now.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.borrow().clone()
    }

    /// Opens a page.
    pub async fn open(&mut self, url: &str) {
        let opened = self.send("Page.navigate", json!({ "url": url })).await;
        assert!(opened["errorText"].is_null(), "{opened}");
    }

    /// The value of an expression, after its promise.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.send("Runtime.evaluate", params).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Evaluates an expression until it is true.
    #[track_caller]
    pub fn wait_for<'b>(&'b mut self, expression: &'b str) -> impl Future<Output = ()> + 'b {
        within_deadline(expression, async move {
            // An exception while the page loads is no answer yet.
            let expression =
                format!("(() => {{ try {{ return {expression} }} catch {{ return false }} }})()");
            while self.evaluate(&expression).await != true {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// Presses a key.
    pub async fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            _ => 13,
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.send("Input.dispatchKeyEvent", event).await;
            if kind == "rawKeyDown" && key == "Enter" {
                self.send("Input.dispatchKeyEvent", json!({ "type": "char", "text": "\r", "key": key }))
                    .await;
            }
        }
    }

    /// Sets the size of the window.
    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.send("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Prefers light or dark.
    pub async fn prefer(&mut self, scheme: &str) {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.send("Emulation.setEmulatedMedia", media).await;
    }

    /// Saves a picture of the window, or of the whole page.
    pub async fn screenshot(&mut self, file: &Path, is_whole: bool) {
        let mut params = json!({ "format": "png", "captureBeyondViewport": is_whole });
        if is_whole {
            let size = self.send("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
            params["clip"] =
                json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        }
        let picture = self.send("Page.captureScreenshot", params).await;
        fs::write(file, STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}
