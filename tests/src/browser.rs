//! Headless Chromium, driven over WebDriver (<https://www.w3.org/TR/webdriver2/>).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::wait_until;

/// One browser window.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: std::path::PathBuf,
}

impl Browser {
    /// Starts a window of `width` pixels that prefers `language`.
    #[must_use]
    pub fn start(width: u32, language: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let profile = std::env::temp_dir().join(format!("scrinium-browser-{port}"));
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            profile,
        };
        wait_until("chromedriver listens", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let args = [
            "--headless=new".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--disable-dev-shm-usage".into(),
            "--force-device-scale-factor=1".into(),
            "--hide-scrollbars".into(),
            format!("--user-data-dir={}", browser.profile.display()),
            format!("--lang={language}"),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {
                "args": args,
                "prefs": { "intl.accept_languages": language },
                "mobileEmulation": { "deviceMetrics": { "width": width, "height": 900, "pixelRatio": 1.0, "touch": width < 600, "mobile": width < 600 } },
            },
        }}});
        let made = browser.call("POST", "", &wanted);
        browser.session = made["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("no session: {made}"))
            .to_owned();
        browser
    }

    pub fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// Clicks the first element a CSS selector finds.
    pub fn click(&self, selector: &str) {
        let element = self
            .find(selector)
            .unwrap_or_else(|| panic!("there is no {selector} on {}", self.url()));
        self.call("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Types into the first element a CSS selector finds.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self
            .find(selector)
            .unwrap_or_else(|| panic!("there is no {selector} on {}", self.url()));
        self.call("POST", &format!("/element/{element}/clear"), &json!({}));
        self.call(
            "POST",
            &format!("/element/{element}/value"),
            &json!({ "text": text }),
        );
    }

    /// The visible text of the first element a CSS selector finds; empty when there is none.
    #[must_use]
    pub fn text(&self, selector: &str) -> String {
        let script = format!(
            "const e = document.querySelector({}); return e ? e.innerText : '';",
            json!(selector)
        );
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Runs a script in the page and returns its value.
    #[must_use]
    pub fn run(&self, script: &str) -> Value {
        self.call(
            "POST",
            "/execute/sync",
            &json!({ "script": script, "args": [] }),
        )
    }

    #[must_use]
    pub fn url(&self) -> String {
        self.call("GET", "/url", &Value::Null)
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Whether nothing sticks out to the side of the page.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.run("return document.documentElement.scrollWidth <= window.innerWidth;") == json!(true)
    }

    /// Saves what is seen as a PNG.
    pub fn screenshot(&self, path: &Path) {
        let shot = self.call("GET", "/screenshot", &Value::Null);
        let png = BASE64.decode(shot.as_str().unwrap().as_bytes()).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::File::create(path).unwrap();
        file.write_all(&png).unwrap();
    }

    fn find(&self, selector: &str) -> Option<String> {
        let found = self
            .try_call(
                "POST",
                "/element",
                &json!({ "using": "css selector", "value": selector }),
            )
            .ok()?;
        found
            .as_object()?
            .values()
            .next()?
            .as_str()
            .map(str::to_owned)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let path = if self.session.is_empty() {
            "/session".to_owned()
        } else {
            format!("/session/{}{path}", self.session)
        };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream =
            TcpStream::connect(("127.0.0.1", self.port)).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream
            .write_all(request.as_bytes())
            .map_err(|error| error.to_string())?;
        // The driver keeps the connection open whatever it is told: the length says where the answer ends.
        let mut answer = BufReader::new(stream);
        let mut len = 0;
        loop {
            let mut line = String::new();
            answer
                .read_line(&mut line)
                .map_err(|error| error.to_string())?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; len];
        answer
            .read_exact(&mut body)
            .map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let value = value["value"].clone();
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return Err(value.to_string());
        }
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _gone = self.try_call("DELETE", "", &Value::Null);
        let _gone = self.driver.kill();
        let _reaped = self.driver.wait();
        let _best_effort = std::fs::remove_dir_all(&self.profile);
    }
}
