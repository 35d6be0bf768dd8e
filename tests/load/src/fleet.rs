//! All runtimes: they connect at once, and come back when they are lost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::Failure;
use crate::session::{Session, Unwelcome};
use crate::wire::{Identity, Seed};

/// The longest wait before the second attempt, and before any: as the protocol says.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// How long a storm may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the sessions have in common.
#[derive(Default)]
struct Shared {
    lost: AtomicUsize,
    attempts: AtomicUsize,
    /// Why the latest attempt failed that did.
    complaint: Mutex<String>,
}

/// The runtimes of a fleet, each connected or about to be.
pub(crate) struct Fleet {
    identities: Vec<Arc<Identity>>,
    shared: Arc<Shared>,
    sessions: JoinSet<Result<(), Failure>>,
}

/// How a connect storm went.
pub(crate) struct Storm {
    pub(crate) took: Duration,
    /// From a session's first attempt to its welcome, in microseconds.
    pub(crate) welcome: Histogram<u64>,
    pub(crate) attempts: usize,
}

impl Fleet {
    pub(crate) fn new(seeds: Vec<Seed>) -> Self {
        let identities = seeds.into_iter().map(|seed| Arc::new(Identity::new(seed))).collect();
        Self { identities, shared: Arc::default(), sessions: JoinSet::new() }
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = &str> {
        self.identities.iter().map(|identity| identity.seed.agent.as_str())
    }

    pub(crate) fn len(&self) -> usize {
        self.identities.len()
    }

    /// How many sessions were lost since the storm.
    pub(crate) fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Connects all at once, and waits until each is welcome.
    pub(crate) async fn storm(&mut self, with_tls: bool) -> Result<Storm, Failure> {
        self.shared = Arc::default();
        let tls = with_tls.then(connector);
        let (begun, (told, mut welcomes)) = (Instant::now(), tokio::sync::mpsc::unbounded_channel());
        for identity in &self.identities {
            let (identity, shared, tls, told) = (identity.clone(), self.shared.clone(), tls.clone(), told.clone());
            self.sessions.spawn(live(identity, shared, tls, told));
        }
        let mut welcome = Histogram::new(3)?;
        for _ in 0..self.identities.len() {
            tokio::select! {
                Some(latency) = welcomes.recv() => welcome.record(micros(latency))?,
                Some(ended) = self.sessions.join_next() => return Err(ended?.err().unwrap_or("a session ended".into())),
                () = tokio::time::sleep_until((begun + PATIENCE).into()) => {
                    let complaint = self.shared.complaint.lock().unwrap_or_else(PoisonError::into_inner);
                    return Err(format!("some were not welcome after {PATIENCE:?}; the latest failure: {complaint}").into());
                }
            }
        }
        let attempts = self.shared.attempts.load(Ordering::Relaxed);
        Ok(Storm { took: begun.elapsed(), welcome, attempts })
    }

    /// Cuts all connections, as a network that goes away does.
    pub(crate) async fn cut(&mut self) {
        self.sessions.shutdown().await;
    }
}

/// The life of a runtime. It ends only when it is refused for good.
async fn live(
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    tls: Option<TlsConnector>,
    told: tokio::sync::mpsc::UnboundedSender<Duration>,
) -> Result<(), Failure> {
    let (begun, mut told, mut limit) = (Instant::now(), Some(told), RETRY_FIRST);
    loop {
        shared.attempts.fetch_add(1, Ordering::Relaxed);
        match Session::open(identity.clone(), tls.as_ref()).await {
            Ok(session) => {
                if let Some(told) = told.take() {
                    // Whoever counts may have given up.
                    let _ = told.send(begun.elapsed());
                }
                limit = RETRY_FIRST;
                let _ = session.serve().await;
                shared.lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(Unwelcome::ForGood(reason)) => return Err(reason),
            Err(Unwelcome::ForNow(reason)) => {
                *shared.complaint.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_string();
            }
        }
        tokio::time::sleep(limit.mul_f64(fastrand::f64())).await;
        limit = (limit * 2).min(RETRY_LONGEST);
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn connector() -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers for the usual versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Own(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Takes any certificate whose key signed the handshake. The seeds of a hub on loopback carry no pin, and
/// the hub here is one that this program has started.
#[derive(Debug)]
struct Own(Arc<CryptoProvider>);

impl ServerCertVerifier for Own {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
