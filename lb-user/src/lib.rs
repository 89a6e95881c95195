//! The library below the `xipvs` command.
//!
//! Outermost first: [`cli`] turns what was typed into a command; [`table`] has the words for services and
//! destinations; [`director`] carries them out, on the XDP maps, on native kernel IPVS or in memory.

pub mod cli;
pub mod director;
pub mod hand_over;
pub mod mark;
pub mod mirror;
pub mod netns;
pub mod object;
pub mod plan;
pub mod rehearsal;
pub mod rule;
pub mod sync;
pub mod table;
