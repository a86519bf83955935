//! One connection to Valkey, and the commands that the fleet needs of it.
//!
//! The protocol is the crate's `redis`. The socket, its deadlines and its end are ours: each command has a deadline, and
//! the owner of a connection drops it after any failure but a refusal, and opens a new one. A connection that makes
//! itself anew, as `ConnectionManager` of that crate does, keeps a dead socket for as long as nothing is written to it.

mod error;
mod reply;
mod socket;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, Value, cmd};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use self::error::ConnectionError;
use self::socket::ReadAllowance;
use super::settings::{FleetTls, POLL_MARGIN, ValkeyCredential};
use super::stream::{Entry, Envelope, Identity, Poll, StreamId};
use crate::secret::Password;
use crate::upstream::UpstreamAddress;

/// How long a connection may take to be made, and a command until its reply.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// An open connection. It ends when it is dropped, whatever it waits for.
///
/// Several commands may be under way at the same time; each is answered after those before it, so a blocking one needs a
/// connection of its own. A call that is dropped is still executed.
#[derive(Debug)]
pub struct Connection {
    /// Has no deadline of its own.
    commands: MultiplexedConnection,
    allowance: ReadAllowance,
    ended: CancellationToken,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Connects, and shows the credential. `name` is what `CLIENT LIST` has for the connection.
    pub async fn open(
        address: &UpstreamAddress,
        credential: &ValkeyCredential,
        tls: Option<&FleetTls>,
        name: &str,
    ) -> Result<Self, ConnectionError> {
        let password = read_password(credential).await?;
        let failed = |error| ConnectionError::Connect(address.clone(), error);
        let (socket, allowance) = socket::open(address, tls, DEADLINE).await.map_err(failed)?;
        // Without a credential, nothing is sent yet.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(&info, socket, config).await;
        let (commands, driver) =
            made.map_err(|error| ConnectionError::Closed("connecting", error.to_string()))?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let driver = tokio::spawn(async move {
            driver.await;
            drop(guard);
        });
        let connection = Self { commands, allowance, ended, _driver: AbortOnDropHandle::new(driver) };
        connection.log_in(credential.user.as_deref(), password.as_ref(), name).await?;
        Ok(connection)
    }

    async fn log_in(
        &self,
        user: Option<&str>,
        password: Option<&Password>,
        name: &str,
    ) -> Result<(), ConnectionError> {
        let mut pipeline = Pipeline::new();
        if let Some(password) = password {
            let login = pipeline.cmd("AUTH");
            if let Some(user) = user {
                login.arg(user);
            }
            login.arg(password.expose());
        }
        // Only for operators. It also tells whether a password is wanted; a user who may not do so goes without.
        pipeline.cmd("CLIENT").arg("SETNAME").arg(name);
        let replies = self.send_all("AUTH", &pipeline, DEADLINE).await?;
        for (index, reply) in replies.iter().enumerate() {
            let is_login = index == 0 && password.is_some();
            match reply {
                Value::ServerError(error) if is_login || error.code() == "NOAUTH" => {
                    return Err(ConnectionError::Login(error.code().to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns once the server has closed the connection, or it has failed.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Asks whether the server answers.
    pub async fn ping(&self) -> Result<(), ConnectionError> {
        self.send("PING", &cmd("PING")).await.map(|_| ())
    }

    /// Which server this is, in which life of its data. `None` if it does not tell, as managed services do. An error if it is
    /// not a master.
    pub async fn identity(&self) -> Result<Option<Identity>, ConnectionError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ROLE").cmd("INFO").arg("server").cmd("INFO").arg("replication");
        let [role, server, replication] = self.send_array("ROLE", &pipeline, DEADLINE).await?;
        if !reply::is_master(role)? {
            return Err(ConnectionError::NotMaster);
        }
        reply::identity(server, replication)
    }

    /// The address that a Sentinel has of the master of this name. `None` if it knows no such master.
    pub async fn master_address(&self, master: &str) -> Result<Option<UpstreamAddress>, ConnectionError> {
        let mut command = cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let value = self.send("SENTINEL", &command).await?;
        reply::master_address(&value)
    }

    /// The ID of the last entry. `None` if there is none.
    pub async fn last_id(&self, stream: &str) -> Result<Option<StreamId>, ConnectionError> {
        let mut command = cmd("XREVRANGE");
        command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
        let value = self.send("XREVRANGE", &command).await?;
        let entries = reply::entries(value).ok_or(ConnectionError::Unexpected("XREVRANGE"))?;
        Ok(entries.first().map(|entry| entry.id))
    }

    /// Waits up to `block` for entries behind `after`, and gets no more than `count` of them. Whether the entry `after` is
    /// still there, and the server still a master, is asked in the same breath, behind them.
    pub async fn poll(
        &self,
        stream: &str,
        after: StreamId,
        (block, count): (Duration, usize),
    ) -> Result<Poll, ConnectionError> {
        let after = after.to_string();
        // 0 would be without limit.
        let milliseconds = u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("XREAD").arg("COUNT").arg(count).arg("BLOCK").arg(milliseconds);
        pipeline.arg("STREAMS").arg(stream).arg(&after);
        pipeline.cmd("XRANGE").arg(stream).arg(&after).arg(&after).cmd("ROLE");
        let [read, anchor, role] = self.send_array("XREAD", &pipeline, block + POLL_MARGIN).await?;
        let read = reply::accepted("XREAD", read)?;
        let entries = reply::read_entries(read).ok_or(ConnectionError::Unexpected("XREAD"))?;
        let anchor = reply::accepted("XRANGE", anchor)?;
        let anchor = reply::entries(anchor).ok_or(ConnectionError::Unexpected("XRANGE"))?;
        let is_master = reply::is_master(role)?;
        Ok(Poll { is_master, anchor_found: !anchor.is_empty(), entries })
    }

    /// Appends an entry to the stream, which is cut to about `max_entries`.
    pub async fn add(
        &self,
        stream: &str,
        envelope: &Envelope,
        max_entries: u64,
    ) -> Result<StreamId, ConnectionError> {
        let mut command = cmd("XADD");
        command.arg(stream).arg("MAXLEN").arg("~").arg(max_entries).arg("*");
        self.append(command, envelope).await
    }

    /// Appends an entry with this ID. Refused if the stream has had a greater one.
    pub async fn add_at(
        &self,
        stream: &str,
        id: StreamId,
        envelope: &Envelope,
    ) -> Result<StreamId, ConnectionError> {
        let mut command = cmd("XADD");
        command.arg(stream).arg(id.to_string());
        self.append(command, envelope).await
    }

    async fn append(&self, mut command: Cmd, envelope: &Envelope) -> Result<StreamId, ConnectionError> {
        let [p, n, x] = reply::FIELDS;
        command.arg(p).arg(&envelope.publisher).arg(n).arg(envelope.number).arg(x).arg(&envelope.sealed);
        let value = self.send("XADD", &command).await?;
        reply::id(&value).ok_or(ConnectionError::Unexpected("XADD"))
    }

    /// Whether an entry could be appended. None is, since there is no such stream.
    pub async fn try_add(&self, stream: &str) -> Result<(), ConnectionError> {
        let mut command = cmd("XADD");
        command.arg(format!("{stream}:none")).arg("NOMKSTREAM").arg("*").arg("").arg("");
        self.send("XADD", &command).await.map(|_| ())
    }

    /// What the server does when its memory is full (`maxmemory-policy`). `None` if it does not tell.
    pub async fn eviction_policy(&self) -> Result<Option<String>, ConnectionError> {
        let info = self.send("INFO", cmd("INFO").arg("memory")).await?;
        Ok(reply::info_field(&info, "maxmemory_policy"))
    }

    /// How many replicas have what was written over this connection, after waiting for that up to 100 ms.
    pub async fn wait(&self, replicas: u32) -> Result<u64, ConnectionError> {
        let mut command = cmd("WAIT");
        command.arg(replicas).arg(WAIT_MILLISECONDS);
        match self.send("WAIT", &command).await? {
            Value::Int(count) => u64::try_from(count).map_err(|_| ConnectionError::Unexpected("WAIT")),
            _ => Err(ConnectionError::Unexpected("WAIT")),
        }
    }

    /// What is at each of these places, in their order. All are asked for in one write.
    pub async fn entries_at(
        &self,
        stream: &str,
        ids: &[StreamId],
    ) -> Result<Vec<Option<Entry>>, ConnectionError> {
        let mut pipeline = Pipeline::new();
        for id in ids.iter().map(StreamId::to_string) {
            pipeline.cmd("XRANGE").arg(stream).arg(&id).arg(&id);
        }
        let entry = |value| {
            let entries = reply::entries(reply::accepted("XRANGE", value)?);
            Ok(entries.ok_or(ConnectionError::Unexpected("XRANGE"))?.into_iter().next())
        };
        self.send_all("XRANGE", &pipeline, DEADLINE).await?.into_iter().map(entry).collect()
    }

    /// Up to `count` entries from `from` on, in their order.
    pub async fn range(
        &self,
        stream: &str,
        from: StreamId,
        count: usize,
    ) -> Result<Vec<Entry>, ConnectionError> {
        let mut command = cmd("XRANGE");
        command.arg(stream).arg(from.to_string()).arg("+").arg("COUNT").arg(count);
        let value = self.send("XRANGE", &command).await?;
        reply::entries(value).ok_or(ConnectionError::Unexpected("XRANGE"))
    }

    /// The value of a key.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
        match self.send("GET", cmd("GET").arg(key)).await? {
            Value::BulkString(value) => Ok(Some(value)),
            Value::Nil => Ok(None),
            _ => Err(ConnectionError::Unexpected("GET")),
        }
    }

    /// Sets a key, which is removed after `ttl`.
    pub async fn set_px(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), ConnectionError> {
        self.send("SET", &set(key, value, ttl)).await.map(|_| ())
    }

    /// The same, only if there is no such key. Whether it was set.
    pub async fn set_nx_px(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, ConnectionError> {
        let value = self.send("SET", set(key, value, ttl).arg("NX")).await?;
        Ok(value != Value::Nil)
    }

    /// Removes keys. How many there were.
    pub async fn del(&self, keys: &[String]) -> Result<u64, ConnectionError> {
        if keys.is_empty() {
            return Ok(0);
        }
        match self.send("DEL", cmd("DEL").arg(keys)).await? {
            Value::Int(count) => u64::try_from(count).map_err(|_| ConnectionError::Unexpected("DEL")),
            _ => Err(ConnectionError::Unexpected("DEL")),
        }
    }

    /// Sends one command. Its reply, unless that is an error.
    async fn send(&self, name: &'static str, command: &Cmd) -> Result<Value, ConnectionError> {
        let mut commands = self.commands.clone();
        self.allowance.renew();
        let sent = timeout(DEADLINE, commands.send_packed_command(command)).await;
        let reply = sent.map_err(|_| ConnectionError::Late(name, DEADLINE))?;
        reply::accepted(name, reply.map_err(|error| self.failure(name, &error))?)
    }

    /// Sends several in one write. Their replies, errors included.
    async fn send_all(
        &self,
        name: &'static str,
        pipeline: &Pipeline,
        deadline: Duration,
    ) -> Result<Vec<Value>, ConnectionError> {
        let mut commands = self.commands.clone();
        self.allowance.renew();
        let sent = timeout(deadline, commands.send_packed_commands(pipeline, 0, pipeline.len())).await;
        let replies = sent.map_err(|_| ConnectionError::Late(name, deadline))?;
        replies.map_err(|error| self.failure(name, &error))
    }

    /// What the crate reports is never a reply: those with an error are values.
    fn failure(&self, name: &'static str, error: &redis::RedisError) -> ConnectionError {
        if self.allowance.is_used_up() {
            ConnectionError::TooLarge(name, error.to_string())
        } else {
            ConnectionError::Closed(name, error.to_string())
        }
    }

    async fn send_array<const N: usize>(
        &self,
        name: &'static str,
        pipeline: &Pipeline,
        deadline: Duration,
    ) -> Result<[Value; N], ConnectionError> {
        let replies = self.send_all(name, pipeline, deadline).await?;
        replies.try_into().map_err(|_| ConnectionError::Unexpected(name))
    }
}

/// How long a server may wait for its replicas.
const WAIT_MILLISECONDS: u64 = 100;

fn set(key: &str, value: &[u8], ttl: Duration) -> Cmd {
    // 0 would be an error.
    let milliseconds = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut command = cmd("SET");
    command.arg(key).arg(value).arg("PX").arg(milliseconds);
    command
}

/// A file system may take its time, or hang.
async fn read_password(credential: &ValkeyCredential) -> Result<Option<Password>, ConnectionError> {
    let Some(file) = credential.password_file.clone() else { return Ok(None) };
    let failed = |error: String| ConnectionError::Password(file.display().to_string(), error);
    let of_task = file.clone();
    let reading = tokio::task::spawn_blocking(move || Password::load(&of_task));
    let read = timeout(DEADLINE, reading).await.map_err(|_| failed("was not read in time".to_owned()))?;
    let read = read.map_err(|error| failed(error.to_string()))?;
    read.map(Some).map_err(|error| failed(error.to_string()))
}
