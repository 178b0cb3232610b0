//! Requests to the hub.

use std::cell::Cell;
use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body, Timeout};

use crate::patience::Patience;
use crate::refusal::{Refusal, Status};
use crate::untrusted::is_word;
use crate::{Listener, ModelName, Settings};

/// A server that says nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(30);

/// More than the list of the files of any repository.
const LARGEST_LIST: u64 = 64 << 20;

const MOST_REDIRECTIONS: usize = 10;

/// What speaks to the hub.
pub(crate) struct Client<'a> {
    settings: &'a Settings,
    agent: Agent,
    stop: &'a AtomicBool,
    /// Whether it has answered at all.
    is_there: Cell<bool>,
}

/// A revision of a repository.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    /// As the repository calls them: not to be trusted.
    pub(crate) files: Vec<String>,
}

/// A file of a repository.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) url: String,
    /// Names the content: its SHA-256 for files of weights, else a hash of Git's.
    pub(crate) etag: String,
    pub(crate) bytes: u64,
}

impl<'a> Client<'a> {
    pub(crate) fn new(settings: &'a Settings, stop: &'a AtomicBool) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Files lie with other hosts, which the token is no business of.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("fewbit/", env!("CARGO_PKG_VERSION")))
            // Positions and lengths are those of the file itself.
            .accept_encoding("identity")
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build();
        Self { settings, agent: config.into(), stop, is_there: Cell::new(false) }
    }

    pub(crate) fn patience(&self) -> Patience<'a> {
        Patience::new(self.settings.pause, self.stop)
    }

    /// Refuses to go on when asked to stop.
    pub(crate) fn check_stop(&self) -> Result<(), Refusal> {
        if self.stop.load(Ordering::Relaxed) { Err(Refusal::Stopped) } else { Ok(()) }
    }

    /// The commit of a revision, and its files.
    pub(crate) fn listing(&self, name: &ModelName, listener: &mut dyn Listener) -> Result<Listing, Refusal> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (endpoint, repository) = (&self.settings.endpoint, name.repository());
        let url = format!("{endpoint}/api/models/{repository}/revision/{}", encoded(name.revision(), ""));
        let body = self.patiently(listener, || {
            let mut response = self.get(&url, 0)?;
            response.body_mut().with_config().limit(LARGEST_LIST).read_to_vec().map_err(refusal)
        })?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|e| Refusal::Fault(format!("its answer is none: {e}")))?;
        if !is_word(&answer.sha) {
            return Err(Refusal::Fault(format!("it calls a commit {:?}", answer.sha)));
        }
        Ok(Listing { commit: answer.sha, files: answer.siblings.into_iter().map(|s| s.rfilename).collect() })
    }

    /// What is known of a file before it is read.
    pub(crate) fn head(
        &self,
        name: &ModelName,
        commit: &str,
        file: &str,
        listener: &mut dyn Listener,
    ) -> Result<Remote, Refusal> {
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/{}/resolve/{commit}/{}", name.repository(), encoded(file, "/"));
        self.patiently(listener, || self.head_once(&url))
    }

    /// Follows redirections within the host; the one that leads to another host says what the file is.
    fn head_once(&self, url: &str) -> Result<Remote, Refusal> {
        let mut at = url.to_owned();
        let (mut etag, mut bytes) = (None, None);
        for _ in 0..MOST_REDIRECTIONS {
            let request = self.agent.head(&at).config().max_redirects(0).build();
            let response = self.answer(self.authorized(request).call())?;
            let headers = response.headers();
            etag = etag.or_else(|| text(headers, "x-linked-etag"));
            bytes = bytes.or_else(|| text(headers, "x-linked-size"));
            let location = text(headers, "location").filter(|_| response.status().is_redirection());
            if let Some(location) = location.filter(|l| l.starts_with('/') && !l.starts_with("//")) {
                at = moved(&at, &location)?;
                continue;
            }
            etag = etag.or_else(|| text(headers, "etag"));
            let is_itself = response.status().is_success();
            bytes = bytes.or_else(|| text(headers, "content-length").filter(|_| is_itself));
            break;
        }
        let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned());
        match (etag, bytes.and_then(|b| b.parse().ok())) {
            (Some(etag), Some(bytes)) if is_word(&etag) => Ok(Remote { url: url.to_owned(), etag, bytes }),
            (Some(etag), Some(_)) => Err(Refusal::Fault(format!("it gives a file the mark {etag:?}"))),
            _ => Err(Refusal::Fault("it says neither the mark nor the length of a file".to_owned())),
        }
    }

    /// Asks for a file from a byte on.
    pub(crate) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Refusal> {
        let mut request = self.authorized(self.agent.get(url));
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        self.answer(request.call())
    }

    fn authorized<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.settings.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.text)),
            None => request,
        }
    }

    /// An answer that is none of what was asked for is a refusal.
    fn answer(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Refusal> {
        let response = answer.map_err(refusal)?;
        self.is_there.set(true);
        let code = response.status().as_u16();
        if code < 400 {
            return Ok(response);
        }
        let headers = response.headers();
        Err(Refusal::Status(Status { code, word: text(headers, "x-error-code"), retry_after: retry_after(headers) }))
    }

    /// Tries as long as there is hope. Where nothing was ever heard of the hub, there is none.
    fn patiently<T>(
        &self,
        listener: &mut dyn Listener,
        mut ask: impl FnMut() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut patience = self.patience();
        loop {
            self.check_stop()?;
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(r @ Refusal::Unreachable(_)) if !self.is_there.get() => return Err(r),
                Err(r) => patience.wait(r, listener)?,
            }
        }
    }
}

pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Seconds of `Retry-After`, or those until the window of `RateLimit` ends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let plain = || text(headers, "retry-after")?.parse().ok();
    let window =
        || text(headers, "ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok());
    plain().or_else(window).map(Duration::from_secs)
}

/// Where a redirection without a host leads.
fn moved(from: &str, location: &str) -> Result<String, Refusal> {
    let fault = || Refusal::Fault(format!("it redirects to {location:?}"));
    let from: Uri = from.parse().map_err(|_| fault())?;
    let (Some(scheme), Some(host)) = (from.scheme(), from.authority()) else { return Err(fault()) };
    let to = format!("{scheme}://{host}{location}");
    to.parse::<Uri>().map(|_| to).map_err(|_| fault())
}

/// A text in a path of an address; the characters of `kept` stay.
fn encoded(text: &str, kept: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if byte.is_ascii_alphanumeric() || "-_.~".contains(c) || (byte.is_ascii() && kept.contains(c)) {
            out.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What an error of the connection means.
pub(crate) fn refusal(error: ureq::Error) -> Refusal {
    use ureq::Error as E;
    let why = error.to_string();
    match error {
        E::Timeout(Timeout::Resolve | Timeout::Connect) => Refusal::Unreachable("no answer".to_owned()),
        E::HostNotFound => Refusal::Unreachable("there is no such host, or no connection".to_owned()),
        E::ConnectionFailed | E::ConnectProxyFailed(_) => Refusal::Unreachable(why),
        E::Io(e) => match e.kind() {
            ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::TimedOut
            | ErrorKind::WouldBlock => Refusal::Broken(e.to_string()),
            // Such as a certificate that is not trusted.
            ErrorKind::InvalidData | ErrorKind::InvalidInput => Refusal::Fault(e.to_string()),
            // No route, a refusal, or a name that nobody knows, whose kind has no name.
            _ => Refusal::Unreachable(e.to_string()),
        },
        E::Timeout(_) => Refusal::Broken(format!("silent for {} s", SILENCE.as_secs())),
        E::Protocol(_) | E::BodyStalled => Refusal::Broken(why),
        _ => Refusal::Fault(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("sub/ä b?#.gguf", "/"), "sub/%C3%A4%20b%3F%23.gguf");
        assert_eq!(moved("https://h:1/a/b?c", "/d/e").unwrap(), "https://h:1/d/e");
    }

    #[test]
    fn the_time_to_wait_is_read() {
        let wait = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers).map(|d| d.as_secs())
        };
        assert_eq!(wait("retry-after", "17"), Some(17));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(wait("ratelimit", r#""api";r=0;t=42"#), Some(42));
    }
}
