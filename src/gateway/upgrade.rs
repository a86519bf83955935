//! An upgrade without a refused connection, where no service manager holds the sockets: the next process takes them
//! over from this one while this one serves.
//!
//! | the next process | this process |
//! |---|---|
//! | says its version | passes its listening sockets |
//! | `bound`: it has read and bound all that it needs | ends to answer operators and hooks, so that nothing is purged any more; saves the cache; `saved` |
//! | loads the cache, starts its threads; `serving`: it is ready to | answers nothing from its cache any more; `yours` |
//! | accepts clients, answers operators and hooks | accepts no more, and drains |
//!
//! This process goes on if the next one fails, until `yours` is said. The next one serves only after it has heard that, or
//! if this one is gone. So never do both serve with a cache and secrets of their own:
//!
//! - Who waits no longer closes its ear, and then looks once more whether the word has come. So the word was either heard,
//!   or its sender knows that it was not, and both agree who goes on.
//! - A process that is told to end says `ending`, in place of whatever word is due. The next one goes on alone then, if it
//!   has all sockets.
//! - An end of the connection says nothing: the other process may hang, or have given up. Only if the system says that
//!   it is gone does the next one go on alone. Else it ends with an error.
//!
//! A process of a version that does not say `ending` yet is taken for one that goes on.
//!
//! Differs from a second process that binds the same addresses with `SO_REUSEPORT`: there each socket has a queue of
//! its own, and connections that wait in that of the process which ends are reset.

mod channel;
mod predecessor;
mod successor;

pub(super) use self::predecessor::Predecessor;
pub(super) use self::successor::NextProcess;

#[cfg(test)]
mod tests;
