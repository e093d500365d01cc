//! Turns the web config's `tls_server_config` into rustls' configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, de::IgnoredAny};
use tokio_rustls::rustls::{
    NamedGroup, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use super::web_config::{KeyError, WatchedFile};
use crate::error::SyscallError;

/// `tls_server_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsSection {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    client_auth_type: ClientAuth,
    client_allowed_sans: Option<IgnoredAny>,
    min_version: Option<String>,
    max_version: Option<String>,
    #[serde(default)]
    cipher_suites: Vec<String>,
    #[serde(default)]
    curve_preferences: Vec<String>,
    prefer_server_cipher_suites: Option<bool>,
}

/// Which certificates clients must show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum ClientAuth {
    #[default]
    NoClientCert,
    RequestClientCert,
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

impl TlsSection {
    /// Whether every client needs a certificate.
    pub(super) fn wants_certificates(&self) -> bool {
        self.client_auth_type == ClientAuth::RequireAndVerifyClientCert
    }

    /// Refuses settings that look like protection, and would protect nothing.
    ///
    /// # Errors
    /// When there is such a setting.
    pub(super) fn check(&self) -> Result<(), KeyError> {
        if self.client_allowed_sans.is_some() {
            let text =
                "isn't followed here: leave it out, and have a CA of your own for clients that may ask";
            return problem("client_allowed_sans", text);
        }
        match self.client_auth_type {
            ClientAuth::RequestClientCert | ClientAuth::RequireAnyClientCert => problem(
                "client_auth_type",
                "certificates that nobody verifies aren't asked for: RequireAndVerifyClientCert is right",
            ),
            ClientAuth::NoClientCert if self.client_ca.is_some() || self.client_ca_file.is_some() => problem(
                "client_auth_type",
                "is missing, and there is a CA for clients: RequireAndVerifyClientCert is right",
            ),
            _ => Ok(()),
        }
    }
}

fn problem<T>(key: &str, text: impl Into<String>) -> Result<T, KeyError> {
    Err(KeyError::new(format!("tls_server_config.{key}"), text))
}

/// The contents of its files, in PEM.
pub(super) struct TlsFiles {
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
    /// The files, to notice changes.
    pub(super) watched: Vec<WatchedFile>,
}

impl TlsFiles {
    /// Reads the files. A relative path starts at the web config's directory.
    ///
    /// # Errors
    /// When one can't be read.
    pub(super) fn read(section: &TlsSection, dir: &Path) -> Result<Self, SyscallError> {
        let mut watched = Vec::new();
        let mut get = |text: &Option<String>, file: &Option<PathBuf>| match (text, file) {
            (_, Some(file)) => {
                let (read, content) = WatchedFile::read(dir.join(file))?;
                watched.push(read);
                Ok(Some(content))
            }
            (text, None) => Ok(text.clone().map(String::into_bytes)),
        };
        Ok(Self {
            certificate: get(&section.cert, &section.cert_file)?,
            key: get(&section.key, &section.key_file)?,
            client_ca: get(&section.client_ca, &section.client_ca_file)?,
            watched,
        })
    }
}

/// Creates rustls' configuration.
///
/// # Errors
/// When a key has a value that can't be used; the error names it.
pub(super) fn configure(section: &TlsSection, files: &TlsFiles) -> Result<ServerConfig, KeyError> {
    let provider = Arc::new(provider(section)?);
    let verifier = verifier(section, files, &provider)?;
    let chain = certificates("cert", files.certificate.as_deref())?;
    let Some(key) = files.key.as_deref() else {
        return problem("key_file", "is missing: it is needed for TLS");
    };
    let key = PrivateKeyDer::from_pem_slice(key)
        .or_else(|error| problem("key_file", format!("no private key in PEM ({error})")))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(section)?)
        .or_else(|error| problem("cipher_suites", error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key);
    let mut config =
        config.or_else(|error| problem("cert_file", format!("doesn't go with the key ({error})")))?;
    config.ignore_client_order = section.prefer_server_cipher_suites.unwrap_or(true);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(key: &str, pem: Option<&[u8]>) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let key = format!("{key}_file");
    let Some(pem) = pem else { return problem(&key, "is missing: it is needed for TLS") };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => problem(&key, "no certificate in PEM"),
        Ok(chain) => Ok(chain),
        Err(error) => problem(&key, format!("no certificate in PEM ({error})")),
    }
}

fn verifier(
    section: &TlsSection,
    files: &TlsFiles,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, KeyError> {
    if section.client_auth_type == ClientAuth::NoClientCert {
        return Ok(Arc::new(NoClientAuth));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client_ca", files.client_ca.as_deref())? {
        roots.add(certificate).or_else(|error| problem("client_ca_file", error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if section.wants_certificates() { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().or_else(|error| problem("client_ca_file", error.to_string()))?;
    Ok(verifier)
}

fn versions(section: &TlsSection) -> Result<Vec<&'static SupportedProtocolVersion>, KeyError> {
    let version = |key, name: &Option<String>, default| match name.as_deref() {
        None => Ok(default),
        Some("TLS12") => Ok(2),
        Some("TLS13") => Ok(3),
        Some(other) => problem(key, format!("{other:?} isn't spoken here: TLS12 and TLS13 are")),
    };
    let min = version("min_version", &section.min_version, 2)?;
    let max = version("max_version", &section.max_version, 3)?;
    if min > max {
        return problem("max_version", "is before min_version");
    }
    let all = [(3, &TLS13), (2, &TLS12)];
    Ok(all.iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, version)| *version).collect())
}

/// Returns ring's provider, with the chosen cipher suites and curves. In TLS 1.3 no suites can be
/// chosen, as in other exporters.
fn provider(section: &TlsSection) -> Result<CryptoProvider, KeyError> {
    let mut provider = ring::default_provider();
    if !section.cipher_suites.is_empty() {
        let (fixed, mut free): (Vec<_>, Vec<_>) =
            provider.cipher_suites.into_iter().partition(|suite| suite.tls13().is_some());
        let names: Vec<String> = free.iter().map(|suite| format!("{:?}", suite.suite())).collect();
        // Names of TLS 1.3's suites are accepted, because these are always there.
        let is_fixed =
            |name: &str| fixed.iter().any(|s| format!("{:?}", s.suite()).replacen("13", "", 1) == name);
        free = order("cipher_suites", &section.cipher_suites, &names, &free, is_fixed)?;
        provider.cipher_suites = fixed.into_iter().chain(free).collect();
    }
    if !section.curve_preferences.is_empty() {
        let names: Vec<String> = provider.kx_groups.iter().map(|group| curve(group.name())).collect();
        let groups =
            order("curve_preferences", &section.curve_preferences, &names, &provider.kx_groups, |_| false)?;
        provider.kx_groups = groups;
    }
    Ok(provider)
}

/// Returns a curve's name in web configs.
fn curve(group: NamedGroup) -> String {
    match group {
        NamedGroup::secp256r1 => "CurveP256".into(),
        NamedGroup::secp384r1 => "CurveP384".into(),
        other => format!("{other:?}"),
    }
}

/// Returns the chosen ones of `all`, in the order of `chosen`.
fn order<T: Copy>(
    key: &str,
    chosen: &[String],
    names: &[String],
    all: &[T],
    ignored: impl Fn(&str) -> bool,
) -> Result<Vec<T>, KeyError> {
    let mut found = Vec::new();
    for name in chosen.iter().filter(|name| !ignored(name)) {
        match names.iter().zip(all).find(|(known, _)| *known == name) {
            Some((_, one)) => found.push(*one),
            None => return problem(key, format!("there is no {name}: there are {}", names.join(", "))),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(section: &TlsSection) -> String {
        let files = TlsFiles { certificate: None, key: None, client_ca: None, watched: Vec::new() };
        section.check().and_then(|()| configure(section, &files)).err().unwrap().to_string()
    }

    #[test]
    fn choices() {
        let section = TlsSection {
            cipher_suites: vec![
                "TLS_AES_128_GCM_SHA256".into(),
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into(),
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256".into(),
            ],
            curve_preferences: vec!["CurveP384".into(), "X25519".into()],
            min_version: Some("TLS13".into()),
            ..TlsSection::default()
        };
        let provider = provider(&section).unwrap();
        let suites = provider.cipher_suites.iter();
        let free: Vec<_> =
            suites.filter(|suite| suite.tls13().is_none()).map(|s| format!("{:?}", s.suite())).collect();
        assert_eq!(free, section.cipher_suites[1..]);
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [NamedGroup::secp384r1, NamedGroup::X25519]);
        assert_eq!(versions(&section).unwrap(), [&TLS13]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cipher = TlsSection { cipher_suites: vec!["RC4".into()], ..TlsSection::default() };
        assert!(wrong(&cipher).contains("cipher_suites: there is no RC4: there are TLS_ECDHE"));
        let curve = TlsSection { curve_preferences: vec!["P".into()], ..TlsSection::default() };
        assert!(wrong(&curve).contains("CurveP256"), "{}", wrong(&curve));
        let old = TlsSection { min_version: Some("TLS10".into()), ..TlsSection::default() };
        assert!(versions(&old).unwrap_err().problem.contains("TLS12 and TLS13"));
        let swapped = TlsSection {
            max_version: Some("TLS12".into()),
            min_version: Some("TLS13".into()),
            ..TlsSection::default()
        };
        assert!(versions(&swapped).is_err());
        for client_auth_type in [ClientAuth::RequestClientCert, ClientAuth::RequireAnyClientCert] {
            let section = TlsSection { client_auth_type, ..TlsSection::default() };
            assert!(wrong(&section).contains("RequireAndVerifyClientCert is right"));
        }
        let forgotten = TlsSection { client_ca: Some(String::new()), ..TlsSection::default() };
        assert!(wrong(&forgotten).contains("client_auth_type: is missing"));
        let verified = ClientAuth::RequireAndVerifyClientCert;
        assert!(
            wrong(&TlsSection { client_auth_type: verified, ..TlsSection::default() })
                .contains("client_ca_file: is missing")
        );
    }
}
