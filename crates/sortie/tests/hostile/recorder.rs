//! An MCP server's place taken by a strict reader: it keeps what comes byte for byte, answers what is canonical, and
//! notes what is not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One request, whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    }

    /// What follows the route in its target.
    pub(crate) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Notes {
    requests: Vec<Request>,
    broken: Vec<String>,
    bytes: usize,
}

/// The server.
pub(crate) struct Recorder {
    pub(crate) addr: SocketAddr,
    notes: Arc<Mutex<Notes>>,
    _tasks: JoinSet<()>,
}

/// What is answered to a request: the whole answer, byte for byte.
pub(crate) type Answers = Arc<dyn Fn(&Request) -> Vec<u8> + Send + Sync>;

impl Recorder {
    pub(crate) async fn start() -> Self {
        Self::answering(Arc::new(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())).await
    }

    /// One that answers what a test wants.
    pub(crate) async fn answering(answers: Answers) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let notes = Arc::new(Mutex::new(Notes::default()));
        let kept = notes.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, kept.clone(), answers.clone()));
            }
        });
        Self { addr, notes, _tasks: tasks }
    }

    /// The whole requests so far. Panics when anything came that a strict reader refuses.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(notes.broken.is_empty(), "not canonical: {:?}", notes.broken);
        notes.requests.clone()
    }

    /// The only whole request for this path.
    pub(crate) fn only(&self, path: &str) -> Request {
        let mut found: Vec<_> = self.requests().into_iter().filter(|request| request.path() == path).collect();
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        found.pop().expect("one")
    }

    /// Bytes that came so far, whole requests or not.
    pub(crate) fn bytes(&self) -> usize {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

async fn serve(mut stream: TcpStream, notes: Arc<Mutex<Notes>>, answers: Answers) {
    let note = |broken| notes.lock().unwrap_or_else(PoisonError::into_inner).broken.push(broken);
    let mut bytes = Vec::new();
    loop {
        match whole(&bytes) {
            Err(broken) => return note(format!("{broken}: {}", String::from_utf8_lossy(&bytes))),
            Ok(Some((request, rest))) => {
                bytes = rest.to_vec();
                let answer = answers(&request);
                notes.lock().unwrap_or_else(PoisonError::into_inner).requests.push(request);
                // The proxy sends one request at a time and waits for its answer.
                if !bytes.is_empty() {
                    return note(format!("bytes behind a request: {}", String::from_utf8_lossy(&bytes)));
                }
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
            Ok(None) => {}
        }
        let Ok(count @ 1..) = stream.read_buf(&mut bytes).await else { return };
        notes.lock().unwrap_or_else(PoisonError::into_inner).bytes += count;
    }
}

/// The first request in `bytes` and what follows it, if it is whole; why not, if it is not canonical.
fn whole(bytes: &[u8]) -> Result<Option<(Request, &[u8])>, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let mut lines = fields(&bytes[..end])?;
    let line = lines.remove(0).0;
    let [method, target, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("request line `{line}`"));
    };
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    if !token(method) || !(target.starts_with('/') || target == "*") {
        return Err(format!("request line `{line}`"));
    }
    if let Some((name, _)) = lines.iter().find(|(name, _)| !token(name)) {
        return Err(format!("header name `{name}`"));
    }
    let mut request = Request { line: line.clone(), headers: lines, ..Request::default() };
    let rest = &bytes[end + 4..];
    match (&request.header("content-length")[..], &request.header("transfer-encoding")[..]) {
        ([], []) => Ok(Some((request, rest))),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("length {length}"))?;
            if rest.len() < length {
                return Ok(None);
            }
            request.body = rest[..length].to_vec();
            Ok(Some((request, &rest[length..])))
        }
        ([], ["chunked"]) => chunked(request, rest),
        (lengths, codings) => Err(format!("framed twice or oddly: {lengths:?} {codings:?}")),
    }
}

fn chunked(mut request: Request, mut rest: &[u8]) -> Result<Option<(Request, &[u8])>, String> {
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&rest[..end]).map_err(|_| "chunk size".to_owned())?;
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("chunk size `{size}`"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("chunk size `{size}`"))?;
        rest = &rest[end + 2..];
        if size == 0 {
            if rest.starts_with(b"\r\n") {
                return Ok(Some((request, &rest[2..])));
            }
            let Some(end) = find(rest, b"\r\n\r\n") else { return Ok(None) };
            request.trailers = fields(&[b"t\r\n", &rest[..end]].concat())?.split_off(1);
            return Ok(Some((request, &rest[end + 4..])));
        }
        let Some((chunk, after)) = rest.split_at_checked(size) else { return Ok(None) };
        match after {
            [b'\r', b'\n', after @ ..] => rest = after,
            [] | [b'\r'] => return Ok(None),
            _ => return Err("a chunk longer than it says".to_owned()),
        }
        request.body.extend_from_slice(chunk);
    }
}

/// Lines that end in CR LF and hold neither alone; the first one has no value.
fn fields(head: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = head.iter().map(|b| char::from(*b)).collect::<String>();
    let mut fields = Vec::new();
    for (number, line) in text.split("\r\n").enumerate() {
        if line.contains(|c: char| (c.is_ascii_control() && c != '\t') || c == '\u{7f}') {
            return Err(format!("control byte in `{line}`"));
        }
        match line.split_once(':') {
            _ if number == 0 => fields.push((line.to_owned(), String::new())),
            Some((name, value)) => fields.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Err(format!("header `{line}`")),
        }
    }
    Ok(fields)
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
