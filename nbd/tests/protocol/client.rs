//! The client against the session through a pipe in memory, and against servers that lie.

use crate::bytes::{option_reply, string};
use crate::support::{Devices, ELSEWHERE, ELSEWHERE_MESSAGE, Memory, export};
use ashlar_nbd::client::{Answer, Client, ClientError, ClientRequest, ServerError, ZeroOptions};
use ashlar_nbd::export::{ExportInfo, Extent, Features};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::reply::ChunkOrder;
use ashlar_nbd::server::{self, Backend};
use ashlar_nbd::session::{Operation, Outcome, Request, Session};
use ashlar_nbd::wire::{self, ErrorNumber, Headers};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// The server's end, in the client's own hands: what the client writes goes into a session; when it
/// reads and nothing is there, the waiting requests are answered, last one first, reads in pieces.
struct Pipe {
    session: Session,
    device: Memory,
    input: Vec<u8>,
    output: VecDeque<u8>,
    waiting: Vec<(Request, Vec<u8>)>,
    closed: bool,
}

impl Pipe {
    fn new(info: ExportInfo) -> Self {
        Self {
            session: Session::new(Limits::PRODUCTION),
            device: Memory::new(info),
            input: Vec::new(),
            output: Session::greeting().into(),
            waiting: Vec::new(),
            closed: false,
        }
    }

    fn advance(&mut self) {
        loop {
            let pending = self.session.payload_pending_bytes() as usize;
            if pending > 0 {
                if self.input.len() < pending {
                    return;
                }
                let payload = self.input.drain(..pending).collect();
                self.waiting.last_mut().expect("a write").1 = payload;
                self.session.payload_taken(pending as u32);
            }
            let (consumed, outcome) = self.session.receive(&self.input);
            self.input.drain(..consumed);
            match outcome {
                Outcome::NeedMore | Outcome::Busy => return,
                Outcome::Send(bytes) => self.output.extend(bytes),
                Outcome::OpenExport { .. } => self.output.extend(self.session.answer_export(&self.device.info())),
                Outcome::Request(request) => self.waiting.push((request, Vec::new())),
                Outcome::Close { .. } => {
                    self.closed = true;
                    return;
                }
                outcome => panic!("{outcome:?}"),
            }
        }
    }

    fn answer(&mut self, request: &Request, payload: &[u8]) {
        let Request { operation, offset_bytes: offset, length_bytes: length, .. } = *request;
        let handle = request.handle();
        match operation {
            Operation::Read { .. } if self.session.is_structured() && length >= 2048 => {
                // The second half first, then a hole if it is one.
                let (length, half) = (length as u32, length as u32 / 2);
                let mut data = vec![0; length as usize];
                self.device.read(offset, &mut data).unwrap();
                let (first, second) = data.split_at(half as usize);
                let header = self.session.chunk_data(handle, offset + u64::from(half), length - half, ChunkOrder::More);
                self.output.extend(header.iter().chain(second));
                if first.iter().all(|byte| *byte == 0) {
                    self.output.extend(self.session.chunk_hole(handle, offset, half, ChunkOrder::More).iter());
                } else {
                    let header = self.session.chunk_data(handle, offset, half, ChunkOrder::More);
                    self.output.extend(header.iter().chain(first));
                }
                self.output.extend(self.session.reply_done(handle).iter());
                return;
            }
            Operation::Read { .. } => {
                let mut data = vec![0; length as usize];
                self.device.read(offset, &mut data).unwrap();
                self.output.extend(self.session.reply_read(request).iter().chain(&data));
                return;
            }
            Operation::BlockStatus { .. } => {
                let mut extents = Vec::new();
                self.device.extents(offset, length, &mut extents).unwrap();
                let mut bytes = Vec::new();
                self.session.reply_block_status(handle, &extents, &mut bytes);
                self.output.extend(bytes);
                return;
            }
            Operation::Write => self.device.write(offset, payload, false).unwrap(),
            Operation::Trim => self.device.trim(offset, length, false).unwrap(),
            Operation::WriteZeroes { fast: true, .. } => {
                let reply = self.session.reply_error(handle, ErrorNumber::NotSupported, "not fast");
                self.output.extend(reply.iter());
                return;
            }
            Operation::WriteZeroes { .. } => self.device.zero(offset, length, false, false).unwrap(),
            Operation::Flush | Operation::Cache => {}
        }
        self.output.extend(self.session.reply_done(handle).iter());
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.extend_from_slice(bytes);
        self.advance();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.output.is_empty() && !self.waiting.is_empty() {
            while let Some((request, payload)) = self.waiting.pop() {
                self.answer(&request, &payload);
            }
            self.advance();
        }
        assert!(!self.output.is_empty() || self.closed, "the client waits for what cannot come");
        self.output.read(buffer)
    }
}

fn client() -> Client<Pipe> {
    Client::connect(Pipe::new(export("disk", 1 << 20)), "disk").expect("a connection")
}

#[test]
fn everything_is_negotiated() {
    let client = client();
    let export = client.export();
    assert_eq!(export.size_bytes, 1 << 20);
    assert_eq!(export.features, Features::ALL);
    assert_eq!(export.block_sizes, Default::default());
    assert_eq!(export.headers, Headers::Extended);
    assert_eq!(export.allocation_context, Some(1));
}

#[test]
fn what_is_written_is_read() {
    let mut client = client();
    client.write(4096, &[7; 8192]).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(4096, 8192).unwrap(), [7; 8192]);
    assert_eq!(client.read(0, 8192).unwrap(), [[0; 4096], [7; 4096]].concat());
    client.zero(4096, 4096).unwrap();
    client.trim(8192, 4096).unwrap();
    assert_eq!(client.read(0, 16384).unwrap(), [0; 16384]);
    let hole = |length_bytes| Extent { length_bytes, hole: true, zero: true };
    assert_eq!(client.block_status(0, 1 << 20).unwrap(), [hole(1 << 20)]);
    client.write(4096, &[1; 512]).unwrap();
    let data = Extent { length_bytes: 4096, hole: false, zero: false };
    assert_eq!(client.block_status(0, 16384).unwrap(), [hole(4096), data, hole(8192)]);
    assert_eq!(client.disconnect().unwrap(), []);
}

#[test]
fn pipelined_requests_are_answered_in_any_order() {
    let mut client = client();
    let writes: Vec<_> =
        (0..100u64).map(|i| client.send_write(i * 512, &[i as u8; 512], i % 2 == 0).unwrap()).collect();
    let mut answered: Vec<_> = (0..100).map(|_| client.receive().unwrap()).collect();
    assert!(answered[0].cookie > answered[99].cookie, "the pipe answers backwards");
    assert!(answered.iter().all(|reply| reply.result == Ok(Answer::Done)));
    answered.sort_by_key(|reply| reply.cookie);
    assert_eq!(answered.iter().map(|reply| reply.cookie).collect::<Vec<_>>(), writes);
    assert!(matches!(client.receive(), Err(ClientError::Idle)));

    let early = client.send_read(512, 512).unwrap();
    let late = client.send_read(1024, 512).unwrap();
    assert_eq!(client.wait(early).unwrap(), Answer::Data(vec![1; 512]));
    assert_eq!(client.receive().unwrap().cookie, late);
    let last = client.send_read(1536, 512).unwrap();
    let replies = client.disconnect().unwrap();
    assert_eq!(replies[0].cookie, last);
    assert_eq!(replies[0].result, Ok(Answer::Data(vec![3; 512])));
}

#[test]
fn an_error_reply_leaves_the_connection_good() {
    let mut client = client();
    let error = client.write(1 << 20, &[1; 512]).unwrap_err();
    assert!(matches!(&error, ClientError::Server(ServerError { error: ErrorNumber::NoSpace, .. })));
    assert!(error.to_string().contains("ENOSPC: the range ends after the end"), "{error}");
    let fast = ZeroOptions { fast: true, ..ZeroOptions::default() };
    let cookie = client.send_zeroes(0, 512, fast).unwrap();
    let error = client.receive().unwrap();
    assert_eq!(error.cookie, cookie);
    assert_eq!(error.result.unwrap_err().error, ErrorNumber::NotSupported);
    let odd = ClientRequest { command: 200, flags: 0, offset_bytes: 0, length_bytes: 0 };
    client.send(odd, &[]).unwrap();
    assert_eq!(client.receive().unwrap().result.unwrap_err().error, ErrorNumber::Invalid);
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
}

/// A server thread on the other end of a socket pair.
fn served(features: Features) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let info = ExportInfo { features, ..export("disk", 1 << 20) };
    let devices = Devices(vec![Arc::new(Memory::new(info))]);
    std::thread::spawn(move || server::serve(theirs, &devices, Limits::PRODUCTION));
    ours
}

#[test]
fn exports_are_listed_and_refused() {
    let listed = Client::list(served(Features::ALL)).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].name, &*listed[0].description), ("disk", "disk in memory"));
    match Client::connect(served(Features::ALL), ELSEWHERE) {
        Err(ClientError::Refused { reply_type: wire::REPLY_ERR_POLICY, message }) => {
            assert_eq!(message, ELSEWHERE_MESSAGE);
        }
        other => panic!("{other:?}"),
    }
    let unknown = Client::connect(served(Features::ALL), "none");
    assert!(matches!(unknown, Err(ClientError::Refused { reply_type: wire::REPLY_ERR_UNKNOWN, .. })));
}

#[test]
fn a_uri_is_opened_over_tcp_and_silence_ends_in_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nbd://{}/disk", listener.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || {
        let devices = Devices(vec![Arc::new(Memory::new(export("disk", 1 << 20)))]);
        server::serve(listener.accept().unwrap().0, &devices, Limits::PRODUCTION)
    });
    let mut client = Client::open(&uri).unwrap();
    client.write(0, &[3; 512]).unwrap();
    assert_eq!(client.read(0, 1024).unwrap(), [[3; 512], [0; 512]].concat());

    // The payload is missing, so the server waits, and so does the client.
    client.stream().set_timeout(Some(Duration::from_millis(20))).unwrap();
    let half = ClientRequest { command: wire::COMMAND_WRITE, flags: 0, offset_bytes: 0, length_bytes: 512 };
    client.send(half, &[]).unwrap();
    assert!(matches!(client.receive(), Err(ClientError::Io(_))));
    assert!(matches!(client.flush(), Err(ClientError::Dead)));
}

#[test]
fn payload_larger_than_every_buffer_passes() {
    let mut client = Client::connect(served(Features::ALL), "disk").unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i / 512) as u8).collect();
    client.write(0, &data).unwrap();
    assert!(client.read(0, 1 << 20).unwrap() == data);
}

#[test]
fn a_refused_write_leaves_the_connection_good() {
    let mut client = Client::connect(served(Features { read_only: true, ..Features::ALL }), "disk").unwrap();
    let error = client.write(0, &[1; 1 << 19]).unwrap_err();
    assert!(matches!(error, ClientError::Server(ServerError { error: ErrorNumber::NotPermitted, .. })));
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
}

/// A server that says fixed bytes, whatever it hears.
pub struct Script(io::Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client whose server negotiates as usual and then says `bytes`.
fn scripted(headers: Headers, bytes: &[u8]) -> Client<Script> {
    scripted_with(1 << 20, headers, bytes)
}

/// The same with an export of this size.
pub fn scripted_with(size_bytes: u64, headers: Headers, bytes: &[u8]) -> Client<Script> {
    let greeting = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let context = [option_reply(10, 4, b"\0\0\0\x05base:allocation"), option_reply(10, 1, b"")].concat();
    let no = |option| option_reply(option, 0x8000_0001, b"no");
    let agreed = match headers {
        Headers::Extended => [option_reply(11, 1, b""), context].concat(),
        Headers::Structured => [no(11), option_reply(8, 1, b""), context].concat(),
        Headers::Simple => [no(11), no(8)].concat(),
    };
    let export = option_reply(7, 3, &[&[0, 0][..], &size_bytes.to_be_bytes(), &[0, 1]].concat());
    let all = [greeting, agreed, export, option_reply(7, 1, b""), bytes.to_vec()].concat();
    Client::connect(Script(io::Cursor::new(all)), "disk").expect("a connection")
}

fn chunk(flags: u16, kind: u16, cookie: u64, content: &[u8]) -> Vec<u8> {
    let head = [&b"\x66\x8e\x33\xef"[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
    [head, string(content)].concat()
}

fn data(flags: u16, offset: u64, length: usize) -> Vec<u8> {
    chunk(flags, 1, 1, &[&offset.to_be_bytes()[..], &vec![9; length]].concat())
}

#[test]
fn a_server_without_structured_replies_is_served_too() {
    let reply = [b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01", &[9; 512][..]].concat();
    let failure = b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x02";
    let mut client = scripted(Headers::Simple, &[&reply[..], failure].concat());
    assert_eq!(client.export().headers, Headers::Simple);
    assert_eq!(client.read(0, 512).unwrap(), [9; 512]);
    let error = client.read(0, 512).unwrap_err();
    assert!(matches!(error, ClientError::Server(ServerError { error: ErrorNumber::Io, .. })));
}

#[test]
fn a_server_that_breaks_the_protocol_is_caught() {
    let cases: &[(&str, Vec<u8>)] = &[
        ("magic", b"\x67\x44\x66\x99aaaaaaaaaaaaaaaa".to_vec()),
        ("cookie", chunk(1, 0, 99, b"")),
        ("simple reply to a read", b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01".to_vec()),
        ("too little data", data(1, 0, 512)),
        ("data twice", [data(0, 0, 1024), data(1, 512, 1024)].concat()),
        ("data before the range", data(1, u64::MAX, 1024)),
        ("data after the range", data(1, 512, 1024)),
        ("a hole too long", chunk(1, 2, 1, b"\0\0\0\0\0\0\0\0\0\0\x10\0")),
        ("an empty hole", chunk(0, 2, 1, b"\0\0\0\0\0\0\0\0\0\0\0\0")),
        ("no data at all", chunk(1, 0, 1, b"")),
        ("content where none belongs", chunk(1, 0, 1, b"x")),
        ("extents for a read", chunk(1, 5, 1, b"\0\0\0\x05\0\0\x02\0\0\0\0\0")),
        ("an unknown chunk", chunk(1, 77, 1, b"")),
        ("a message too long", chunk(1, 0x8001, 1, b"\0\0\0\x05\0\x09no")),
    ];
    for (case, bytes) in cases {
        let mut client = scripted(Headers::Structured, bytes);
        let error = client.read(0, 1024).unwrap_err();
        assert!(matches!(error, ClientError::Protocol(_)), "{case}: {error}");
        assert!(matches!(client.read(0, 1024), Err(ClientError::Dead)), "{case}");
        assert!(matches!(client.receive(), Err(ClientError::Dead)), "{case}");
    }
}

#[test]
fn a_server_that_goes_away_is_told_apart() {
    for bytes in [&b""[..], b"\x66\x8e", &data(1, 0, 1024)[..100]] {
        let error = scripted(Headers::Structured, bytes).read(0, 1024).unwrap_err();
        assert!(matches!(error, ClientError::Closed), "{error}");
    }
    let nothing = Client::connect(Script(io::Cursor::new(Vec::new())), "disk");
    assert!(matches!(nothing, Err(ClientError::Closed)));
    let stranger = Client::connect(Script(io::Cursor::new(b"SSH-2.0-OpenSSH_9.2".to_vec())), "disk");
    assert!(matches!(stranger, Err(ClientError::Protocol(_))));
}

#[test]
fn an_error_after_data_wins() {
    let error = chunk(1, 0x8001, 1, b"\0\0\0\x05\0\x02no");
    let mut client = scripted(Headers::Structured, &[data(0, 0, 512), error].concat());
    let failed = ServerError { error: ErrorNumber::Io, message: "no".into() };
    assert!(matches!(client.read(0, 1024), Err(ClientError::Server(error)) if error == failed));
}
