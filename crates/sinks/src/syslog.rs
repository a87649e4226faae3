//! Syslog (RFC 5424), framed by octet counting, over TCP (RFC 6587 section 3.4.1) or TLS (RFC 5425).
//!
//! Receivers acknowledge nothing. What TCP has taken is lost when a receiver ends before it has read it, and a sender
//! does not hear of that. But a receiver that closes a connection of which it has left bytes unread makes its system
//! send a reset, and one that has read all of them an orderly end. So this side ends the stream from time to time, and
//! takes the orderly end of the other as its receipt. An end that came before ours is none: it may have crossed what
//! was sent. Therefore nothing is sent for a moment before, which is longer than bytes are on their way.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use sortie_runtime::notice_absence;
use sortie_tls::{ReloadingIdentity, ServerName, TlsConnector};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::{TlsParts, tls_parts};
use crate::reader::Record;
use crate::spec::{Confirm, Format, SyslogSpec};
use crate::transport::{Failure, Origin, Sent, Severity, Shown};

/// Most that a receiver may say to us, which is nothing by the RFCs, in bytes.
const MAX_SAID: usize = 4096;

/// How long nothing was sent before the stream is ended.
const QUIET: Duration = Duration::from_millis(250);

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

pub(crate) struct Syslog {
    spec: SyslogSpec,
    format: Format,
    step: Duration,
    tls: Option<(TlsConnector, ServerName<'static>, TlsParts)>,
    hostname: String,
    app: String,
    procid: String,
    stream: Option<Box<dyn Stream>>,
    /// When something was sent last.
    sent_at: Instant,
}

impl Syslog {
    /// Reads the files that the settings name.
    pub(crate) fn new(spec: SyslogSpec, format: Format, step: Duration, origin: &Origin) -> Result<Self, String> {
        let tls = match &spec.tls {
            None => None,
            Some(tls) => {
                let parts = tls_parts(tls, &[])?;
                let name = spec.server_name.as_deref().unwrap_or(&spec.host).to_owned();
                let name = ServerName::try_from(name).map_err(|_| "no certificate can have this name".to_owned())?;
                Some((TlsConnector::from(parts.config.clone()), name, parts))
            }
        };
        let procid = origin.log.rsplit('/').next().unwrap_or_default();
        Ok(Self {
            hostname: header(&origin.host, 255),
            app: header(origin.program(), 48),
            procid: header(procid, 128),
            spec,
            format,
            step,
            tls,
            stream: None,
            sent_at: Instant::now(),
        })
    }

    pub(crate) fn identity(&self) -> Option<&Arc<ReloadingIdentity>> {
        self.tls.as_ref().and_then(|(_, _, parts)| parts.identity.as_ref())
    }

    pub(crate) async fn send(&mut self, records: &[Record]) -> Result<Sent, Failure> {
        let mut bytes = Vec::new();
        for record in records {
            self.write(record, &mut bytes)?;
        }
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        is_open(&mut stream).await?;
        let writing = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        let written = timeout(self.step, writing).await;
        let written = written.map_err(|_| Failure::again("the receiver takes nothing"))?;
        written.map_err(|error| Failure::again(told("cannot write", &error)))?;
        is_open(&mut stream).await?;
        self.stream = Some(stream);
        self.sent_at = Instant::now();
        Ok(match self.spec.confirm {
            Confirm::Closed => Sent::Unconfirmed,
            Confirm::Written => Sent::Taken,
        })
    }

    /// Ends the stream, and waits for the receiver to do the same.
    pub(crate) async fn confirm(&mut self) -> Result<(), Failure> {
        let Some(mut stream) = self.stream.take() else { return Ok(()) };
        sleep_until(self.sent_at + QUIET).await;
        is_open(&mut stream).await?;
        let closing = async {
            stream.shutdown().await?;
            let mut said = [0; MAX_SAID];
            match stream.read(&mut said).await {
                Ok(0) => Ok(true),
                Ok(_) => Ok(false),
                // An orderly end of TCP in which the receiver's TLS has said nothing.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(true),
                Err(error) => Err(error),
            }
        };
        match timeout(self.step, closing).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Failure::again("the receiver talks, which no receiver of syslog does")),
            Ok(Err(error)) => Err(Failure::again(told("the receiver has not read everything", &error))),
            Err(_) => Err(Failure::again(
                "the receiver does not close a connection whose end it has seen, so that nothing is confirmed; if it \
                 never does, set confirm = \"written\"",
            )),
        }
    }

    pub(crate) fn forget(&mut self) {
        self.stream = None;
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        let SyslogSpec { host, port, .. } = &self.spec;
        let connecting = async {
            let tcp = TcpStream::connect((host.as_str(), *port)).await;
            let tcp = tcp.map_err(|error| Failure::again(told(&format!("cannot connect to {host}:{port}"), &error)))?;
            notice_absence(&tcp);
            let Some((connector, name, _)) = &self.tls else { return Ok(Box::new(tcp) as Box<dyn Stream>) };
            let tls = connector.connect(name.clone(), tcp).await;
            let tls = tls.map_err(|error| Failure::again(told(&format!("no TLS with {host}:{port}"), &error)))?;
            Ok(Box::new(tls) as Box<dyn Stream>)
        };
        let connected = timeout(self.step, connecting).await;
        connected.unwrap_or_else(|_| Err(Failure::again(format!("no connection to {host}:{port} in time"))))
    }

    /// One frame: the length, a blank, and the message.
    fn write(&self, record: &Record, out: &mut Vec<u8>) -> Result<(), Failure> {
        use std::io::Write as _;
        let shown = Shown::of(record, self.format)?;
        let severity = match shown.severity() {
            Severity::Error => 3,
            Severity::Warning => 4,
            Severity::Informational => 6,
        };
        let priority = u32::from(self.spec.facility) * 8 + severity;
        let Self { hostname, app, procid, .. } = self;
        let (time, msgid) = (header(shown.head.time, 32), header(shown.head.code, 32));
        let mut head = format!("<{priority}>1 {time} {hostname} {app} {procid} {msgid} ");
        // What is in quotes has no character that would have to be escaped (RFC 5424 section 6.3.3).
        head += &format!("[origin software=\"sortie\" swVersion=\"{}\"]", env!("CARGO_PKG_VERSION"));
        if let Some(number) = self.spec.enterprise_id {
            let event = header(shown.head.event, 64).replace(['"', '\\', ']'], "_");
            let (seq, log) = (record.seq, header(&format!("{app}/{procid}"), 128).replace(['"', '\\', ']'], "_"));
            head += &format!("[sortie@{number} seq=\"{seq}\" event=\"{event}\" log=\"{log}\"]");
        }
        head.push(' ');
        let length = head.len() + shown.body.len();
        write!(out, "{length} {head}").expect("a vector takes all");
        out.extend_from_slice(&shown.body);
        Ok(())
    }
}

/// A field of the head: printable ASCII without blanks, at most so many; `-` where nothing is left.
fn header(text: &str, longest: usize) -> String {
    let plain: String = text.chars().filter(char::is_ascii_graphic).take(longest).collect();
    if plain.is_empty() { "-".to_owned() } else { plain }
}

/// Looks, without waiting, whether the receiver has closed the connection.
async fn is_open(stream: &mut Box<dyn Stream>) -> Result<(), Failure> {
    let mut said = [0; MAX_SAID];
    let read = std::future::poll_fn(|cx| {
        let mut buffer = tokio::io::ReadBuf::new(&mut said);
        match std::pin::Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
            std::task::Poll::Pending => std::task::Poll::Ready(None),
            std::task::Poll::Ready(read) => std::task::Poll::Ready(Some(read.map(|()| buffer.filled().len()))),
        }
    });
    match read.await {
        None => Ok(()),
        Some(Ok(0)) => Err(Failure::again("the receiver has closed the connection")),
        Some(Ok(_)) => Err(Failure::again("the receiver talks, which no receiver of syslog does")),
        Some(Err(error)) => Err(Failure::again(told("the connection broke", &error))),
    }
}

fn told(what: &str, error: &std::io::Error) -> String {
    format!("{what}: {}", sortie_tls::explain_io(error))
}
