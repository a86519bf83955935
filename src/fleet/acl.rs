//! What a user of Valkey has to be allowed.

/// The line that makes a user who may do what the gateways of a fleet do, and nothing else. `fleet` is the name in the
/// keys; the password is left out.
///
/// It has no `client|setinfo`, without which the client does: Redis 7.0 refuses a line that has a subcommand it does not
/// know, all of it. `AUTH` needs no permission.
pub fn acl_line(user: &str, fleet: &str) -> String {
    format!(
        "ACL SETUSER {user} on >PASSWORD resetkeys ~railgate:{{{fleet}}}:* resetchannels -@all \
         +{}",
        COMMANDS.join(" +")
    )
}

/// Every command that is sent to Valkey.
const COMMANDS: [&str; 12] = [
    "ping",
    "info",
    "role",
    "wait",
    "xadd",
    "xread",
    "xrange",
    "xrevrange",
    "get",
    "set",
    "del",
    "client|setname",
];
