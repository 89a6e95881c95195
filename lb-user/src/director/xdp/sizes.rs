//! How large the maps are made.

/// Sizes of the maps; fixed when they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sets in the connection table, a power of two; each takes 1,024 bytes and holds seven entries.
    pub sets: u32,
    /// Destinations of all services together.
    pub destinations: u32,
    /// Services.
    pub services: u32,
    /// Lines of 64 bytes for destination sets.
    pub arena_lines: u32,
    /// CPUs that the machine can have.
    pub cpus: u32,
}

impl Sizes {
    /// The sizes that a director has unless told otherwise: 458,752 entries (a NAT connection takes two), 16,384
    /// services, 131,072 destinations; about 110 MB and 8 MB for each CPU.
    pub const fn new(cpus: u32) -> Self {
        Self { sets: 1 << 16, destinations: 1 << 17, services: 1 << 14, arena_lines: 1 << 18, cpus }
    }

    /// Sizes with room for so many connections, NAT or not, in tables that are at most half full.
    #[must_use]
    pub fn with_connections(self, connections: u32) -> Self {
        let entries = u64::from(connections) * 2 * 2;
        let sets = entries.div_ceil(lb_common::connection::WAYS as u64).next_power_of_two();
        Self { sets: sets.clamp(1 << 10, 1 << 24) as u32, ..self }
    }
}
