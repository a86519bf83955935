//! The layers of the stack, one a file. In which order they stand, and why, is said in
//! [`stack`](crate::stack) alone.

pub mod authenticate;
pub mod find_route;
pub mod forward;
pub mod hygiene;
pub mod observe;
pub mod rescue;
pub mod serve_cached;
#[cfg(test)]
mod testing;

use std::future::{Future, Ready};
use std::pin::Pin;

use futures_util::future::Either;
use http::Response;

use crate::body::Body;
use crate::failure::Failure;

/// What every layer below `rescue` comes to.
pub type Answer = Result<Response<Body>, Failure>;

/// An answer that takes a while.
pub type Later = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An answer that is there at once, or the inner service's.
pub type NowOr<F> = Either<Ready<Answer>, F>;

/// An answer that is there at once.
pub fn now<F>(answer: Answer) -> NowOr<F> {
    Either::Left(std::future::ready(answer))
}
