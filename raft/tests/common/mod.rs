//! An in-memory network of metadata nodes, with cuts.
#![allow(dead_code)]

use ashlar_model::{ClusterId, NodeId, SessionId};
use ashlar_raft::command::NodeSpec;
use ashlar_raft::service::Timings;
use ashlar_raft::state::entities::{Labels, Roles};
use ashlar_raft::{BoxFuture, MetaHandle, MetaOptions, MetaService, RpcKind, StartError, Transport, TransportError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const CLUSTER: ClusterId = ClusterId::from_u128(0xC1);

/// Who can be reached, and who is cut off.
#[derive(Default)]
pub struct Net {
    nodes: Mutex<BTreeMap<NodeId, MetaHandle>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

/// One node's way into the network.
struct Port {
    net: Arc<Net>,
    from: NodeId,
}

impl Transport for Port {
    fn call<'a>(
        &'a self,
        target: NodeId,
        address: &'a str,
        kind: RpcKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            assert_eq!(address, address_of(target), "the caller knows where the node is");
            let cut = |node: &NodeId| self.net.cut.lock().unwrap().contains(node);
            let handle = self.net.nodes.lock().unwrap().get(&target).cloned();
            let Some(handle) = handle.filter(|_| !cut(&target) && !cut(&self.from)) else {
                return Err(TransportError::Unreachable("cut or dead".to_owned()));
            };
            let answer = tokio::time::timeout(timeout, handle.serve_rpc(kind, &body)).await;
            if cut(&target) || cut(&self.from) {
                return Err(TransportError::Timeout);
            }
            answer.map_err(|_| TransportError::Timeout)?.map_err(|e| TransportError::Refused(e.to_string()))
        })
    }
}

pub fn address_of(node: NodeId) -> String {
    format!("node-{node}:7000")
}

pub fn spec(node: NodeId) -> NodeSpec {
    NodeSpec {
        name: format!("n{node}"),
        api_address: address_of(node),
        data_address: format!("node-{node}:7001"),
        labels: Labels::default(),
        roles: Roles { store: true, target: true, meta: true },
        session: SessionId::from_u128(u128::from(node.0)),
        shards: 1,
    }
}

impl Net {
    pub async fn try_start(
        self: &Arc<Self>,
        node: NodeId,
        dir: &Path,
        timings: Timings,
    ) -> Result<MetaHandle, StartError> {
        self.start_of(None, node, dir, timings).await
    }

    /// `cluster`: the one that the node knows that it belongs to.
    pub async fn start_of(
        self: &Arc<Self>,
        cluster: Option<ClusterId>,
        node: NodeId,
        dir: &Path,
        timings: Timings,
    ) -> Result<MetaHandle, StartError> {
        self.start_with(MetaOptions { node, cluster, dir: dir.to_owned(), timings, faults: None }).await
    }

    pub async fn start_with(self: &Arc<Self>, options: MetaOptions) -> Result<MetaHandle, StartError> {
        let node = options.node;
        let port = Arc::new(Port { net: Arc::clone(self), from: node });
        let handle = MetaService::start(options, port).await?;
        self.nodes.lock().unwrap().insert(node, handle.clone());
        Ok(handle)
    }

    pub async fn start(self: &Arc<Self>, node: NodeId, dir: &Path, timings: Timings) -> MetaHandle {
        self.try_start(node, dir, timings).await.unwrap()
    }

    /// The node vanishes: nobody reaches it, and it says nothing more.
    pub async fn kill(&self, node: NodeId) {
        self.cut.lock().unwrap().insert(node);
        let handle = self.nodes.lock().unwrap().remove(&node);
        if let Some(handle) = handle {
            handle.shutdown().await;
        }
        self.cut.lock().unwrap().remove(&node);
    }

    /// Lets go of a node without stopping it.
    pub fn forget(&self, node: NodeId) {
        self.nodes.lock().unwrap().remove(&node);
    }

    pub fn cut(&self, node: NodeId) {
        self.cut.lock().unwrap().insert(node);
    }

    pub fn heal(&self, node: NodeId) {
        self.cut.lock().unwrap().remove(&node);
    }
}

/// Waits until `check` holds.
pub async fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
