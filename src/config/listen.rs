//! `[[listen]]`, `[admin]` and `[hooks]`: the listeners.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::accounts;
use super::auth::secret;
use super::document::{Document, Located, Section, white_space_hint};
use super::gateway_config::AdminSettings;
use super::listen_options;
use super::scalars::{HOUR, ZERO, as_usize, duration};
use crate::hooks;
use crate::secret::{BearerToken, SigningToken};
use crate::server::{DEFAULT_OPERATOR_CONNECTIONS, ListenAddress, ListenOptions, SocketOwner};
use crate::upstream::MAX_SOCKET_PATH;

const DEFAULT_LISTEN: ListenAddress =
    ListenAddress::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8181));
const DEFAULT_ADMIN: ListenAddress =
    ListenAddress::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9181));
const DEFAULT_MODE: u32 = 0o660;
const ADDRESS: &str = "an IP address with a port, unix: and an absolute path, or systemd: and a name, such as \
                       \"127.0.0.1:8181\"";

/// A `[[listen]]`. Without `connections`, `limits.connections` applies.
pub(super) struct ListenSection {
    pub(super) address: Located<ListenAddress>,
    pub(super) connections: Option<usize>,
    pub(super) options: ListenOptions,
}

pub(super) fn listen(document: &Document<'_>, root: &mut Section<'_, '_>) -> Vec<ListenSection> {
    let Some(sections) = root.section_array("listen") else {
        let address = Located { value: DEFAULT_LISTEN, key: "listen".to_owned(), offset: 0 };
        return vec![ListenSection { address, connections: None, options: ListenOptions::default() }];
    };
    if sections.value.is_empty() {
        let message = "is empty, so no client could connect; drop the key for the default, 127.0.0.1:8181";
        document.error(sections.offset, &sections.key, message);
    }
    let mut all: Vec<ListenSection> = Vec::new();
    for mut section in sections.value {
        let address = address(document, &mut section, None);
        let connections = connections(&mut section);
        let known = address.as_ref().map(|address| &address.value);
        let options = listen_options::options(document, &mut section, known);
        section.reject_unknown_keys();
        let Some(address) = address else { continue };
        if all.iter().any(|other| other.address.value.conflicts_with(&address.value)) {
            let message = "another [[listen]] has this address already; drop one";
            document.error(address.offset, &address.key, message);
        }
        all.push(ListenSection { address, connections, options });
    }
    all
}

/// Connections open at one time, if the section has the key.
pub(super) fn connections(section: &mut Section<'_, '_>) -> Option<usize> {
    section.integer("connections", 1..1_000_001).map(|count| as_usize(count.value))
}

pub(super) fn admin(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    listen: &[ListenSection],
) -> AdminSettings {
    let default = || Located { value: DEFAULT_ADMIN, key: "admin.address".to_owned(), offset: 0 };
    let mut section = root.section("admin");
    let given = section.as_mut().and_then(|section| address(document, section, Some(DEFAULT_ADMIN)));
    let token = section.as_mut().and_then(|section| {
        let advice = "write one word into it, such as what `openssl rand -hex 32` prints";
        secret(document, section, ("token_file", advice), BearerToken::load)
    });
    let hosts = section.as_mut().map(|section| hosts(document, section)).unwrap_or_default();
    let connections = section.as_mut().and_then(connections).unwrap_or(DEFAULT_OPERATOR_CONNECTIONS);
    if let Some(section) = section {
        section.reject_unknown_keys();
    }
    let address = given.unwrap_or_else(default);
    let mut others = listen.iter().map(|listen| &listen.address);
    if let Some(other) = others.find(|other| other.value.conflicts_with(&address.value)) {
        let offset = if address.offset == 0 { other.offset } else { address.offset };
        let default = if address.offset == 0 { ", its default," } else { "" };
        let message =
            format!("{}{default} is the address of a [[listen]] already; choose another port", address.value);
        document.error(offset, &address.key, message);
    }
    let is_remote =
        matches!(&address.value, ListenAddress::Tcp(address) if !address.ip().to_canonical().is_loopback());
    if is_remote && token.is_none() {
        let message = "can be reached from other machines, and there is no admin.token_file, so nobody may purge or \
                       inspect answers, or drain servers; name such a file, or choose a loopback address or a unix \
                       socket";
        document.warn(address.offset, &address.key, message);
    }
    AdminSettings { address: address.value, connections, token: token.map(|token| token.value), hosts }
}

/// `admin.hosts`, in lower case.
fn hosts(document: &Document<'_>, section: &mut Section<'_, '_>) -> Vec<String> {
    let Some(given) = section.string_list("hosts") else { return Vec::new() };
    let name = |text: &String| {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_name = name.split('.').all(|label| {
            let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            !label.is_empty() && label.bytes().all(is_word)
        });
        if !is_name {
            let message = format!(
                "{text:?} is not a host name; list names without a port, such as [\"railgate.example\"] (addresses and \
                 localhost are always accepted)"
            );
            document.error(given.offset, &given.key, message);
        }
        is_name.then(|| name.to_ascii_lowercase())
    };
    given.value.iter().filter_map(name).collect()
}

/// The address of a section, or `default` if it has no address.
fn address(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    default: Option<ListenAddress>,
) -> Option<Located<ListenAddress>> {
    let (offset, key) = (section.offset(), section.name("address"));
    let is_given = section.has("address");
    if !is_given && default.is_none() {
        document.error(offset, &key, format!("is required: {ADDRESS}"));
    }
    let address = section.take("address", |value| parse_address(value.as_str()));
    let mode = section.string("mode", "permission bits in octal and in quotes, such as \"0660\"", |text| {
        u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
    });
    let user = section.take("owner", |value| account(value.as_str(), accounts::user));
    let group = section.take("group", |value| account(value.as_str(), accounts::group));
    let default = default.filter(|_| !is_given).map(|value| Located { value, key, offset });
    let mut address = address.or(default)?;
    if let ListenAddress::Unix { mode: bits, owner, .. } = &mut address.value {
        *bits = mode.map_or(*bits, |mode| mode.value);
        *owner = SocketOwner { user: user.map(|user| user.value), group: group.map(|group| group.value) };
        return Some(address);
    }
    let mode = mode.map(|mode| (mode.offset, mode.key, "a mode"));
    let owner = user.map(|user| (user.offset, user.key, "an owner"));
    for (offset, key, what) in
        [mode, owner, group.map(|group| (group.offset, group.key, "a group"))].into_iter().flatten()
    {
        let message = if matches!(address.value, ListenAddress::Systemd(_)) {
            "is set by systemd: use SocketMode=, SocketUser= and SocketGroup= of the .socket unit; drop the key".to_owned()
        } else {
            format!("only a unix socket has {what}; drop the key")
        };
        document.error(offset, &key, message);
    }
    Some(address)
}

/// The number of a user or group, which `find` finds by its name.
fn account(name: Option<&str>, find: fn(&str) -> Result<u32, String>) -> Result<u32, String> {
    find(name.ok_or("expected a name or a number in quotes, such as \"git\" or \"998\"")?)
}

fn parse_address(text: Option<&str>) -> Result<ListenAddress, String> {
    let text = text.ok_or_else(|| format!("expected {ADDRESS}, in quotes"))?;
    let expected = || {
        let hint = white_space_hint(text, |compact| compact != text && parse_address(Some(compact)).is_ok());
        format!("expected {ADDRESS}, found {text:?}{}", hint.unwrap_or_default())
    };
    if let Some(name) = text.strip_prefix("systemd:") {
        // As systemd.socket(5) says of FileDescriptorName=.
        let is_name = (1..=255).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        return if is_name { Ok(ListenAddress::Systemd(name.to_owned())) } else { Err(expected()) };
    }
    let Some(path) = text.strip_prefix("unix:") else {
        return text.parse().map(ListenAddress::Tcp).map_err(|_| expected() + address_hint(text));
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(expected());
    }
    if path.ends_with('/') {
        return Err(format!(
            "{text:?} names a directory; name the socket in it, such as \"{text}railgate.sock\""
        ));
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "has a socket path of {} bytes, and the system allows {MAX_SOCKET_PATH}; choose a shorter path",
            path.len()
        ));
    }
    Ok(ListenAddress::Unix { path: PathBuf::from(path), mode: DEFAULT_MODE, owner: SocketOwner::default() })
}

/// Why the text is not an address, for the usual mistakes.
fn address_hint(text: &str) -> &'static str {
    match text.rsplit_once(':') {
        Some((host, port))
            if is_ip(host) && port.parse::<u16>().is_err() && !port.contains(char::is_whitespace) =>
        {
            "; a port is from 0 to 65535"
        }
        Some((host, _)) if host.contains('%') => "; a zone is a number here, as in \"[fe80::1%2]:8181\"",
        _ if is_ip(text) => "; a port is missing",
        _ => "",
    }
}

fn is_ip(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.map_or_else(|| text.parse::<Ipv4Addr>().is_ok(), |bare| bare.parse::<Ipv6Addr>().is_ok())
}

/// `[hooks]`. Without the section there is no such listener.
pub(super) fn hooks(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    (listen, admin): (&[ListenSection], &ListenAddress),
) -> Option<hooks::HooksSettings> {
    let mut section = root.section("hooks")?;
    let has_token_key = section.has("token_file") || section.has("signing_token_file");
    let address = address(document, &mut section, None);
    let connections = connections(&mut section).unwrap_or(DEFAULT_OPERATOR_CONNECTIONS);
    let advice = "write one word into it, and the same into GitLab, as the secret token of the System Hook";
    let token = secret(document, &mut section, ("token_file", advice), BearerToken::load);
    let advice = "copy the signing token that GitLab shows for the System Hook";
    let signing_token = secret(document, &mut section, ("signing_token_file", advice), SigningToken::load);
    let settle = duration(&mut section, "settle", DEFAULT_SETTLE, ZERO..=HOUR);
    if !has_token_key {
        let message =
            "is required in [hooks], or signing_token_file: without either, anyone could drop cached answers";
        document.error(section.offset(), "hooks.token_file", message);
    }
    section.reject_unknown_keys();
    let address = address?;
    let mut others = listen.iter().map(|listen| &listen.address.value).chain([admin]);
    if others.any(|other| other.conflicts_with(&address.value)) {
        let message =
            format!("{} is the address of another listener already; choose another port", address.value);
        document.error(address.offset, &address.key, message);
    }
    Some(hooks::HooksSettings {
        address: address.value,
        connections,
        token: token.map(|token| token.value),
        signing_token: signing_token.map(|token| token.value),
        previous: hooks::PreviousHookSecrets::default(),
        settle,
    })
}

/// `upgrade.socket`, which only processes of the gateway's user may use.
pub(super) fn upgrade_socket(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    own: &[ListenAddress],
) -> Option<ListenAddress> {
    let mut section = root.section("upgrade")?;
    let expected = format!("the absolute path of a socket, of at most {MAX_SOCKET_PATH} bytes");
    let path = section.string("socket", &expected, |text| {
        let is_path = text.starts_with('/') && !text.ends_with('/') && !text.contains('\0');
        (is_path && text.len() <= MAX_SOCKET_PATH).then(|| PathBuf::from(text))
    });
    section.reject_unknown_keys();
    let path = path?;
    let address = ListenAddress::Unix { path: path.value, mode: 0o600, owner: SocketOwner::default() };
    if own.iter().any(|other| other.conflicts_with(&address)) {
        let message = "is the address of a listener already; choose another path";
        document.error(path.offset, &path.key, message);
    }
    Some(address)
}

/// Longer than a read replica lags behind.
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
