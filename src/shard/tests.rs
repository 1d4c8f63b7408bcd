//! Two real shards with a device each and no control plane but the metadata's own state: who comes in at shard 0 gets to
//! where its volume or device is, with everything that was said before.

use super::control::{AttachFor, LocalDevice, ShardCommand, ShardLoad, ShardOptions, ShardRequest, ShardStatus};
use super::scrub::ScrubOptions;
use super::{ShardSet, start};
use crate::front::doors::{DoorLimits, Doors};
use crate::shard::control::{AttachRefusal, DeviceRoute};
use crate::wire::{Frame, FrameDecoder, Hello, HelloReply};
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{ClusterId, DeviceId, NodeId, SessionId, ShardId, VolumeGeometry, VolumeId};
use ashlar_nbd::client::{Client, ClientError, Socket};
use ashlar_nbd::uri::Address;
use ashlar_nbd::wire;
use ashlar_raft::command::{Attach, CreateVolume, DetachBy, NodeSpec};
use ashlar_raft::state::entities::{AttachMode, Labels, Locality, Roles, Spread};
use ashlar_raft::{Command, Response, State};
use ashlar_store::device::BlockingDevice;
use ashlar_store::engine::FormatOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const CLUSTER: ClusterId = ClusterId::from_u128(1);
const NODE: NodeId = NodeId(1);
const SESSION: SessionId = SessionId::from_u128(2);
const DEVICES: [DeviceId; 2] = [DeviceId::from_u128(10), DeviceId::from_u128(11)];
const DEVICE_BYTES: u64 = 256 << 20;
const BLOCK: usize = 4096;
const CHUNK: u64 = 4 << 20;
/// On a shard's own way to an answer nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// One volume's lanes on device 1 alone, so that it is at home on shard 1, another's on both.
const VOLUMES: [(&str, &[usize]); 2] = [("one", &[1]), ("both", &[0, 1])];

struct Daemon {
    shards: ShardSet,
    address: SocketAddr,
    dir: tempfile::TempDir,
    /// Volumes whose writers have ended, and whether cleanly.
    ended: std::sync::mpsc::Receiver<(VolumeId, bool)>,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let limits = DoorLimits { connections_max: 6, ..DoorLimits::default() };
        let options = ShardOptions {
            cluster: CLUSTER,
            node: NODE,
            shards: 2,
            data_address: address,
            nbd_socket: Some(dir.path().join("nbd.sock")),
            nbd_address: None,
            doors: Doors { limits, ..Doors::default() },
            scrub: ScrubOptions { bytes_per_s: 0, pause_us: 0 },
            spin: Duration::ZERO,
        };
        let (shards, requests) = start(options).unwrap();
        let (say_ended, ended) = std::sync::mpsc::sync_channel(64);
        let daemon = Self { shards, address, dir, ended };
        let state = metadata();
        for (number, device) in (0..).zip(DEVICES) {
            daemon.open(device, number);
        }
        let at = |shard| ShardId { node: NODE, shard };
        let route = |(shard, device)| DeviceRoute { device, at: at(shard), address };
        daemon.send(ShardCommand::Routes((0..).zip(DEVICES).map(route).collect()));
        daemon.send(ShardCommand::Volumes(state.volumes().map(|volume| state.volume_spec(volume)).collect()));
        let shards = daemon.shards.clone();
        std::thread::spawn(move || serve(state, requests, &shards, &say_ended));
        daemon
    }

    fn send(&self, command: ShardCommand) {
        self.shards.send(command).unwrap();
    }

    fn open(&self, id: DeviceId, shard: u16) {
        let path = self.dir.path().join(format!("device{shard}"));
        let file = BlockingDevice::create(&path, DEVICE_BYTES).unwrap();
        let options = FormatOptions {
            cluster: CLUSTER,
            device: id,
            size_bytes: DEVICE_BYTES,
            power_loss_protected: true,
            atomic_declared: true,
            log_bytes: None,
            table_bytes: None,
        };
        file.format(&options).unwrap();
        drop(file);
        let device = LocalDevice { path, power_loss_protected: true, atomic_writes: true };
        assert_eq!(super::identify(&device), Ok(id));
        let (done, opened) = oneshot::channel();
        self.send(ShardCommand::OpenDevice { device, shard, done });
        assert_eq!(opened.blocking_recv().unwrap(), Ok(id));
    }

    /// Asks every shard.
    fn ask<T>(&self, make: impl Fn(oneshot::Sender<T>) -> ShardCommand) -> Vec<T> {
        let ask = |shard| {
            let (answer, answered) = oneshot::channel();
            self.shards.send_to(shard, make(answer)).unwrap();
            answered
        };
        let answers: Vec<_> = (0..self.shards.count()).map(ask).collect();
        answers.into_iter().map(|answered| answered.blocking_recv().unwrap()).collect()
    }

    fn loads(&self) -> Vec<ShardLoad> {
        ShardStatus::merged(self.ask(ShardCommand::Status)).shards
    }

    /// Connections and volumes of each shard.
    fn places(&self) -> Vec<(usize, usize)> {
        self.loads().iter().map(|shard| (shard.nbd_connections, shard.volumes)).collect()
    }

    /// The kernel tells the shards when it likes.
    fn wait_places(&self, wanted: &[(usize, usize)]) {
        let tries = PATIENCE.as_millis() / POLL.as_millis();
        let found = (0..tries).any(|_| {
            std::thread::sleep(POLL);
            self.places() == wanted
        });
        assert!(found, "{:?}", self.places());
    }

    fn attach(&self, number: usize) -> Result<(), AttachRefusal> {
        let (done, attached) = oneshot::channel();
        self.send(ShardCommand::Attach { volume: id(number), takeover: false, done });
        attached.blocking_recv().unwrap().map(drop)
    }

    fn detach(&self, number: usize) -> bool {
        let (done, detached) = oneshot::channel();
        self.send(ShardCommand::Detach { volume: id(number), done });
        detached.blocking_recv().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn open_export(&self, name: &str) -> Result<Client<Socket>, ClientError> {
        let socket = Socket::connect(&Address::Unix { path: self.socket() })?;
        socket.set_timeout(Some(PATIENCE))?;
        Client::connect(socket, name)
    }

    /// A connection on which nothing was said.
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Daemon {
    /// Nobody waits: a shard that has ended already takes no command.
    fn drop(&mut self) {
        for shard in 0..self.shards.count() {
            let _ = self.shards.send_to(shard, ShardCommand::Shutdown(oneshot::channel().0));
        }
    }
}

fn id(number: usize) -> VolumeId {
    VolumeId::from_u128(number as u128 + 1)
}

/// A node with two devices and the volumes.
fn metadata() -> State {
    let mut state = State::default();
    let mut must = |command: Command| drop(state.apply(&command).unwrap());
    let node = NodeSpec {
        name: "n1".into(),
        api_address: "127.0.0.1:1".into(),
        data_address: "127.0.0.1:2".into(),
        labels: Labels::default(),
        roles: Roles { store: true, target: true, meta: true },
        session: SESSION,
        shards: 2,
    };
    must(Command::InitCluster { cluster: CLUSTER, name: "c".into(), node_id: NODE, node });
    for (ordinal, id) in (0..).zip(DEVICES) {
        let (name, class) = (format!("/d{ordinal}"), "ssd".to_owned());
        must(Command::AddDevice { id, node: NODE, name, class, capacity_bytes: DEVICE_BYTES, ordinal });
    }
    for (number, (name, lanes)) in VOLUMES.iter().enumerate() {
        must(Command::CreateVolume(CreateVolume {
            id: id(number),
            name: (*name).to_owned(),
            labels: Default::default(),
            geometry: VolumeGeometry { size_bytes: 8 * CHUNK, lane_count: lanes.len() as u16 },
            replicas: 1,
            quorum: QuorumPolicy::Majority,
            in_sync_min: 1,
            spread: Spread::default(),
            locality: Locality::None,
            class: None,
            lanes: lanes.iter().map(|device| vec![DEVICES[*device]]).collect(),
            token: None,
        }));
    }
    state
}

/// Answers what the shards ask the metadata service, until they are gone.
fn serve(
    mut state: State,
    mut requests: mpsc::Receiver<ShardRequest>,
    shards: &ShardSet,
    ended: &std::sync::mpsc::SyncSender<(VolumeId, bool)>,
) {
    while let Some(request) = requests.blocking_recv() {
        let answer = match request {
            ShardRequest::Attach { volume, attempt, purpose } => {
                let mode = match purpose {
                    AttachFor::Maintenance => AttachMode::Maintenance,
                    AttachFor::Guests | AttachFor::Takeover => AttachMode::ReadWrite,
                };
                let attach = Attach { volume, node: NODE, session: SESSION, attempt, mode, takeover: false };
                match state.apply(&Command::Attach(attach)) {
                    Ok(Response::Attached(grant)) => ShardCommand::Granted { attempt, purpose, grant },
                    Ok(other) => panic!("unexpected {other:?}"),
                    Err(refusal) => {
                        let refusal = AttachRefusal { message: refusal.to_string(), retry: false };
                        ShardCommand::AttachRefused { volume, attempt, purpose, refusal }
                    }
                }
            }
            ShardRequest::Cas(cas) => {
                let (volume, lane) = (cas.volume, cas.lane);
                let Ok(Response::LaneCas(mut replies)) = state.apply(&Command::LaneCas(vec![cas])) else {
                    panic!("no answer to a change of a lane")
                };
                let reply = replies.remove(0).unwrap();
                ShardCommand::CasDone { volume, lane, reply }
            }
            ShardRequest::Detached { volume, attempt, clean } => {
                let by = DetachBy::Holder { node: NODE, session: SESSION, attempt };
                drop(state.apply(&Command::Detach { volume, by }));
                let _ = ended.try_send((volume, clean));
                continue;
            }
            ShardRequest::DeviceFailed { device, reason } => panic!("{device}: {reason}"),
        };
        let _ = shards.send(answer);
    }
}

/// A client that says all of it before it hears anything: greeting, GO, and these requests.
fn said_at_once(export: &str, requests: &[u8]) -> Vec<u8> {
    let flags = u32::from(wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES);
    let mut bytes = flags.to_be_bytes().to_vec();
    bytes.extend(wire::MAGIC_OPTION.to_be_bytes());
    bytes.extend(wire::OPTION_GO.to_be_bytes());
    bytes.extend((export.len() as u32 + 6).to_be_bytes());
    bytes.extend((export.len() as u32).to_be_bytes());
    bytes.extend(export.as_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(requests);
    bytes
}

fn request(command: u16, cookie: u64, offset: u64, bytes: usize, data: &[u8]) -> Vec<u8> {
    let mut request = wire::MAGIC_REQUEST.to_be_bytes().to_vec();
    request.extend(0u16.to_be_bytes());
    request.extend(command.to_be_bytes());
    request.extend(cookie.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend((bytes as u32).to_be_bytes());
    request.extend(data);
    request
}

#[test]
fn guests_move_to_the_shard_of_their_volume_and_limits_are_those_of_the_daemon() {
    let daemon = Daemon::start();
    let mut one = daemon.open_export("one").unwrap();
    one.write(CHUNK, &[7; 3 * BLOCK]).unwrap();
    assert_eq!(one.read(CHUNK + BLOCK as u64, BLOCK as u32).unwrap(), [7; BLOCK]);
    assert_eq!(daemon.places(), [(0, 0), (1, 1)]);

    // Equal replicas on both: shard 0 has no volume yet. One of the lanes is behind a link to shard 1.
    let mut both = daemon.open_export("both").unwrap();
    for chunk in 0..8 {
        both.write(chunk * CHUNK, &[chunk as u8 + 1; BLOCK]).unwrap();
    }
    for chunk in 0..8 {
        assert_eq!(both.read(chunk * CHUNK, BLOCK as u32).unwrap(), [chunk as u8 + 1; BLOCK], "chunk {chunk}");
    }
    assert_eq!(daemon.places(), [(1, 1), (1, 1)]);

    let more: Vec<_> = (0..4).map(|n| daemon.open_export(["one", "both"][n % 2]).unwrap()).collect();
    assert_eq!(daemon.places(), [(3, 1), (3, 1)]);
    assert!(daemon.open_export("one").is_err(), "six are the most, wherever they are");
    drop(more);
    daemon.wait_places(&[(1, 1), (1, 1)]);
    assert_eq!(one.read(CHUNK, BLOCK as u32).unwrap(), [7; BLOCK]);
    let unknown = daemon.open_export("none").map(|client| client.export().clone());
    assert!(matches!(&unknown, Err(ClientError::Refused { message, .. }) if message.contains("none")), "{unknown:?}");
}

/// What came behind the choice of the export goes along, whole or in part, and answers come in order.
#[test]
fn requests_that_were_sent_before_the_move_are_carried_out_after_it() {
    let daemon = Daemon::start();
    for cut in [1, 30, 60, 5000] {
        let fill = cut as u8;
        let mut requests = request(wire::COMMAND_WRITE, 1, 0, BLOCK, &[fill; BLOCK]);
        requests.extend(request(wire::COMMAND_READ, 2, 0, BLOCK, &[]));
        let said = said_at_once("one", &requests);
        let mut stream = daemon.raw();
        stream.write_all(&said[..said.len().min(cut)]).unwrap();
        let mut greeting = [0; wire::GREETING_BYTES];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(&said[said.len().min(cut)..]).unwrap();
        // Answers to the option until the acknowledgement.
        loop {
            let mut header = [0; wire::OPTION_REPLY_HEADER_BYTES];
            stream.read_exact(&mut header).unwrap();
            let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let (kind, length) = (field(12), field(16));
            stream.read_exact(&mut vec![0; length as usize]).unwrap();
            assert!(kind == wire::REPLY_INFO || kind == wire::REPLY_ACK, "{kind:#x}");
            if kind == wire::REPLY_ACK {
                break;
            }
        }
        let mut replies = vec![0; wire::REPLY_SIMPLE_BYTES];
        stream.read_exact(&mut replies).unwrap();
        assert_eq!(replies[4..], [&[0; 4][..], &1u64.to_be_bytes()].concat(), "the write");
        let mut replies = vec![0; wire::REPLY_SIMPLE_BYTES + BLOCK];
        stream.read_exact(&mut replies).unwrap();
        assert_eq!(replies[8..16], 2u64.to_be_bytes(), "the read");
        assert!(replies[16..] == [fill; BLOCK]);
    }
    assert_eq!(daemon.places()[0], (0, 0), "they all went on");
}

/// The rule about late requests, for two connections that come in at shard 0 and go on together.
#[test]
fn what_a_lost_guest_had_sent_before_its_move_does_not_land_after_its_successor() {
    let daemon = Daemon::start();
    for round in 0..50u8 {
        let late = request(wire::COMMAND_WRITE, 1, 0, BLOCK, &[0xee; BLOCK]).repeat(20);
        let mut lost = daemon.raw();
        lost.write_all(&said_at_once("one", &late)).unwrap();
        lost.shutdown(std::net::Shutdown::Write).unwrap();
        let mut next = daemon.open_export("one").unwrap();
        next.write(0, &[round; BLOCK]).unwrap();
        drop(lost.read_to_end(&mut Vec::new())); // nothing more comes of it
        assert!(next.read(0, BLOCK as u32).unwrap() == [round; BLOCK], "round {round}: a late write landed");
        next.disconnect().unwrap();
    }
}

/// Symptom it prevents: a volume that moves from one shard to another keeps its former grant, or is refused.
#[test]
fn a_volume_that_was_let_go_may_be_attached_on_another_shard() {
    let daemon = Daemon::start();
    daemon.attach(0).unwrap();
    for round in 0..3 {
        daemon.attach(1).unwrap();
        assert_eq!(daemon.places(), [(0, 1), (0, 1)], "round {round}: the other shard has a volume");
        assert!(daemon.detach(0) && daemon.detach(1), "clean");
        assert_eq!(daemon.places(), [(0, 0), (0, 0)]);
        daemon.attach(1).unwrap();
        assert_eq!(daemon.places(), [(0, 0), (0, 1)], "round {round}: no shard has one");
        daemon.attach(0).unwrap();
        assert!(daemon.detach(1), "clean");
        assert!(!daemon.detach(1), "it is attached nowhere");
    }
}

#[test]
fn a_caller_reaches_the_shard_that_it_names() {
    let daemon = Daemon::start();
    let call = |shard: u16, pieces: usize| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut bytes = Vec::new();
        Hello { cluster: CLUSTER, from: NodeId(2), to: NODE, shard }.encode(&mut bytes);
        for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
            stream.write_all(piece).unwrap();
        }
        let (mut decoder, mut said) = (FrameDecoder::default(), [0; 1]);
        loop {
            stream.read_exact(&mut said).unwrap();
            if let (_, Some(frame)) = decoder.feed(&said).unwrap() {
                return (frame, stream);
            }
        }
    };
    let mut open = Vec::new();
    for (shard, pieces) in [(0, 1), (1, 1), (1, 3), (1, 50)] {
        let (frame, stream) = call(shard, pieces);
        assert!(matches!(frame, Frame::HelloReply(HelloReply::Welcome(_))), "{frame:?}");
        open.push(stream);
    }
    let (frame, _) = call(2, 1);
    match frame {
        Frame::HelloReply(HelloReply::Refused(why)) => assert!(why.contains("this node has 2 shards"), "{why}"),
        other => panic!("not refused: {other:?}"),
    }
}

/// Shards that have nothing to let go wait for those that have: their devices are still needed.
#[test]
fn volumes_are_let_go_cleanly_before_any_shard_closes_its_devices() {
    for _ in 0..5 {
        let daemon = Daemon::start();
        daemon.attach(0).unwrap();
        daemon.attach(1).unwrap();
        let mut both = daemon.open_export("both").unwrap();
        (0..8).for_each(|chunk| both.write(chunk * CHUNK, &[1; BLOCK]).unwrap());
        daemon.ask(ShardCommand::Shutdown);
        let mut ended: Vec<_> = (0..2).map(|_| daemon.ended.recv_timeout(PATIENCE).unwrap()).collect();
        ended.sort_unstable();
        assert_eq!(ended, [(id(0), true), (id(1), true)]);
    }
}
