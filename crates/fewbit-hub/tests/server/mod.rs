//! A hub on this machine: what the real one answers to those who download, and what goes wrong with it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// The commit that `main` and `v1` are at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server; it ends with the test.
pub(crate) struct Server {
    /// Its address.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    repository: String,
    /// Where large files are redirected to: another host by its name.
    other_host: String,
    files: Mutex<Vec<(String, Vec<u8>)>>,
    faults: Mutex<Vec<(String, Fault)>>,
    requests: Mutex<Vec<Request>>,
}

/// What goes wrong, once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// An answer with these lines in its head.
    Status(u16, &'static str),
    /// The body ends after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes, until whoever asked has gone.
    Stall(usize),
    /// The whole file comes, whatever was asked for.
    NoRange,
    /// Other bytes come.
    Garbled,
}

/// A request, and what was sent for it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `GET` or `HEAD`.
    pub(crate) method: String,
    /// With what follows `?`.
    pub(crate) path: String,
    /// The position that the range begins at.
    pub(crate) from: Option<usize>,
    /// The token and the word before it.
    pub(crate) authorization: Option<String>,
    /// Bytes of the body.
    pub(crate) sent: usize,
}

impl Server {
    /// Serves one repository, whose files are these.
    pub(crate) fn start(repository: &str, files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            repository: repository.to_owned(),
            other_host: format!("http://localhost:{port}"),
            files: Mutex::new(files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()),
            faults: Mutex::default(),
            requests: Mutex::default(),
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                // Whoever asked may be gone: that is what some tests are about.
                std::thread::spawn(move || served.answer(&stream));
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), shared }
    }

    /// The next answer to a path that contains `part` goes wrong.
    pub(crate) fn fail(&self, part: &str, fault: Fault) {
        self.shared.faults.lock().unwrap().push((part.to_owned(), fault));
    }

    /// Removes a file, which the list goes on naming with `is_listed`.
    pub(crate) fn remove(&self, name: &str) {
        self.shared.files.lock().unwrap().retain(|(n, _)| n != name);
    }

    /// The requests so far whose path contains `part`; they are forgotten.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        let mut requests = self.shared.requests.lock().unwrap();
        let (found, left) = requests.drain(..).partition(|r| r.path.contains(part));
        *requests = left;
        found
    }
}

/// The mark of a file's content: for large files its SHA-256.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    let mut hash = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(hash, "{byte:02x}");
    }
    hash.truncate(if is_large(name) { 64 } else { 40 });
    hash
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end))
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let (method, path) = first.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
        let mut request =
            Request { method: method.to_owned(), path: path.to_owned(), from: None, authorization: None, sent: 0 };
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ")?;
            match name.to_lowercase().as_str() {
                "range" => request.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
                "authorization" => request.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        let at = self.requests.lock().unwrap().len();
        self.requests.lock().unwrap().push(request.clone());
        let sent = self.respond(stream, &request);
        if let Some(logged) = self.requests.lock().unwrap().get_mut(at) {
            logged.sent = sent;
        }
        Some(())
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|(part, _)| path.contains(part.as_str()))?;
        Some(faults.remove(at).1)
    }

    fn respond(&self, stream: &TcpStream, request: &Request) -> usize {
        let fault = self.fault(&request.path);
        if let Some(Fault::Status(code, head)) = fault {
            return write(stream, code, head, b"", true);
        }
        let path = request.path.split('?').next().unwrap_or_default().replace("%2F", "/");
        let not_found = |word: &str| write(stream, 404, &format!("X-Error-Code: {word}\r\n"), b"", true);
        let files = self.files.lock().unwrap().clone();
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let Some(revision) = rest.strip_prefix(&format!("{}/revision/", self.repository)) else {
                return write(stream, 401, "X-Error-Code: RepoNotFound\r\n", b"", true);
            };
            if !["main", "v1", "refs/pr/1", COMMIT].contains(&revision) {
                return not_found("RevisionNotFound");
            }
            let names: Vec<String> = files.iter().map(|(n, _)| format!("{{\"rfilename\": {n:?}}}")).collect();
            let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}], \"more\": {{}}}}", names.join(", "));
            return write(stream, 200, "", body.as_bytes(), true);
        }
        let (resolved, cached, other) = (
            path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", self.repository)),
            path.strip_prefix("/api/resolve-cache/"),
            path.strip_prefix("/other/"),
        );
        let Some(name) = resolved.or(cached).or(other) else { return not_found("EntryNotFound") };
        let Some((_, bytes)) = files.iter().find(|(n, _)| n == name) else { return not_found("EntryNotFound") };
        let etag = etag(name, bytes);
        if resolved.is_some() {
            let mut head = format!("X-Repo-Commit: {COMMIT}\r\n");
            if is_large(name) {
                let (size, host) = (bytes.len(), &self.other_host);
                let _ = write!(head, "X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n");
                let _ = write!(head, "Location: {host}/other/{name}?signed=1\r\n");
                return write(stream, 302, &head, b"Found", request.method == "GET");
            }
            let _ = write!(head, "Location: /api/resolve-cache/{name}\r\n");
            return write(stream, 307, &head, b"", true);
        }
        let from = request.from.filter(|_| !matches!(fault, Some(Fault::NoRange)));
        let mut head = format!("ETag: W/\"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n");
        if let Some(from) = from {
            let _ = write!(head, "Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
        }
        let mut body = bytes[from.unwrap_or(0)..].to_vec();
        if matches!(fault, Some(Fault::Garbled)) {
            body[0] ^= 1;
        }
        let code = if from.is_some() { 206 } else { 200 };
        if let Some(Fault::Cut(at)) = fault {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
            return write_raw(stream, code, &head, &body[..at.min(body.len())]);
        }
        if let Some(Fault::Stall(at)) = fault {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
            let sent = write_raw(stream, code, &head, &body[..at]);
            let mut stream = stream;
            let _ = stream.read(&mut [0]);
            return sent;
        }
        write(stream, code, &head, &body, request.method == "GET")
    }
}

/// The bytes of the body that were sent.
fn write(stream: &TcpStream, code: u16, head: &str, body: &[u8], has_body: bool) -> usize {
    let head = format!("{head}Content-Length: {}\r\n", body.len());
    write_raw(stream, code, &head, if has_body { body } else { b"" })
}

fn write_raw(mut stream: &TcpStream, code: u16, head: &str, body: &[u8]) -> usize {
    let head = format!("HTTP/1.1 {code} Word\r\n{head}Connection: close\r\n\r\n");
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    if sent.is_ok() { body.len() } else { 0 }
}
