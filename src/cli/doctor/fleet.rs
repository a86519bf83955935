//! Whether the Valkey of the fleet can be used: by one connection, over which nothing is changed.

use std::sync::Arc;

use railgate::config::GatewayConfig;
use railgate::fleet::connection::ConnectionError;
use railgate::fleet::server::Servers;
use railgate::gateway::fleet::fleet_keys;

use super::finding::Finding;

/// The fleet's name, and what was found. `None` without a fleet.
pub(super) async fn examine(config: &GatewayConfig) -> Option<(String, Vec<Finding>)> {
    let (settings, keys) = (config.fleet.as_ref()?, fleet_keys(config)?);
    let servers = Servers::new(Arc::clone(settings));
    let found = match servers.open("railgate-doctor", &keys.bus()).await {
        Err(error) => vec![failed(&error)],
        Ok(opened) => {
            let mut found = vec![Finding::ok(format!("a master answers at {}", opened.address))];
            found.push(match opened.connection.try_add(&keys.bus()).await {
                Ok(()) => Finding::ok("it takes what the gateways tell each other"),
                Err(error) => failed(&error),
            });
            if opened.identity.is_none() {
                found.push(Finding::warning(
                    "it does not say which server it is, so that each new connection is a doubt",
                    Some("allow its user INFO, if it is not a managed service that refuses it to all"),
                ));
            }
            match opened.connection.eviction_policy().await {
                Ok(Some(policy)) if policy != NO_EVICTION => found.push(evicts(&policy)),
                // A managed service may not tell.
                Ok(_) | Err(_) => {}
            }
            found
        }
    };
    Some((keys.fleet().to_owned(), found))
}

const NO_EVICTION: &str = "noeviction";

fn evicts(policy: &str) -> Finding {
    Finding::warning(
        format!(
            "its maxmemory-policy is {policy}: once it is full, it may evict what the gateways tell each other"
        ),
        Some("use one with noeviction, such as that of GitLab's shared state"),
    )
}

fn failed(error: &ConnectionError) -> Finding {
    let advice = match error {
        ConnectionError::Connect(..) => {
            "is the address in [fleet] right, does Valkey listen there, and does it speak TLS if [fleet] does?"
        }
        ConnectionError::Password(..) => "let the gateway's user read that file, and no other",
        ConnectionError::Login(_) => {
            "fleet.user and fleet.password_file have to be those of a user of Valkey: see ACL LIST there"
        }
        ConnectionError::Late(..) => {
            "it accepts connections and does not answer: does it hang, or is it another service?"
        }
        ConnectionError::NotMaster => "fleet.url leads to a replica: name the master, or set fleet.sentinels",
        ConnectionError::NoMaster(_) => {
            "check fleet.sentinels and fleet.master, by SENTINEL MASTERS on each Sentinel"
        }
        ConnectionError::Backwards => {
            "let only the gateways write to their stream: `railgate check` prints the ACL"
        }
        ConnectionError::Refused { .. } => match error.code() {
            Some("NOPERM") => "give its user what `railgate check` prints",
            Some("OOM") => "it is full: raise its maxmemory",
            _ => "see the log of Valkey",
        },
        ConnectionError::Closed(..)
        | ConnectionError::TooLarge(..)
        | ConnectionError::Moved(_)
        | ConnectionError::Unexpected(_) => "is it a Valkey or Redis at all? See its log",
    };
    Finding::failed(error.to_string(), advice)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_refusal_has_the_advice_for_its_code() {
        for (code, advice) in
            [("NOPERM", "railgate check"), ("OOM", "raise its maxmemory"), ("MISCONF", "the log of Valkey")]
        {
            let error =
                ConnectionError::Refused { command: "XADD", code: code.to_owned(), detail: "no".to_owned() };
            let finding = failed(&error);
            assert_eq!(
                (finding.level, finding.summary),
                (Level::Failed, format!("XADD was refused: {code} no"))
            );
            assert!(finding.advice.is_some_and(|said| said.contains(advice)), "{code}");
        }
    }
}
