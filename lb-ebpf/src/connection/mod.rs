//! The connection table: find, insert, advance, remove.
//!
//! Lookups take no lock: an entry says by its sequence number whether a copy of it is whole. Changes are made
//! under the lock of the one set they touch; no lock is held while another is taken.
//!
//! The functions with exported names are what BPF calls global: the verifier checks each once, for any arguments,
//! and not again for every way that leads to a call. Therefore they take and return plain numbers.

mod advance;
mod count;
mod end;
mod find;
mod give_way;
mod insert;
mod sweep;

pub use self::advance::{advance, begin, connection_forget_hop, connection_renew, remember_hop};
pub use self::count::{join_destination, leave_destination};
pub use self::end::{connection_take_back, end, leave_late, remove, remove_dead, replace};
pub use self::find::{AtHome, Found, find, find_at_home, home, look, look_at_home, read_at_home};
pub use self::give_way::make_room;
pub use self::insert::{Inserted, insert, insert_here};
pub use self::sweep::{connection_abandon, connection_sweep_set};
