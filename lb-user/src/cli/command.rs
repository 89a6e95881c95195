//! What a command line means: a command that cannot hold an illegal combination.
//!
//! Made by `check` from what was typed, carried out by `execute`.

use lb_common::mark::Rule;

use crate::table::{Destination, DestinationKey, Service, ServiceKey, SyncDaemon, SyncRole, Timeouts};

/// A command, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Add a service.
    AddService(Service),
    /// Replace all settings of a service.
    EditService(Service),
    /// Delete a service.
    DeleteService(ServiceKey),
    /// Delete every service.
    Clear,
    /// List.
    List(Listing),
    /// Add a destination to a service.
    AddDestination(ServiceKey, Destination),
    /// Replace all settings of a destination.
    EditDestination(ServiceKey, Destination),
    /// Delete a destination.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Set the timeouts.
    SetTimeouts(Timeouts),
    /// Start a sync daemon.
    StartDaemon(SyncDaemon),
    /// Stop the sync daemon of a role.
    StopDaemon(SyncRole),
    /// Carry out the command lines on standard input.
    Restore,
    /// Print the table as command lines.
    Save {
        /// Addresses and ports as numbers.
        numeric: bool,
    },
    /// Add a rule that marks packets behind the others.
    AddMarkRule(Rule),
    /// Delete the rule of this number, from 1 on, or all.
    DeleteMarkRules(Option<usize>),
    /// Zero the counters of one service, or all.
    Zero(Option<ServiceKey>),
    /// Show what a change, or a restore, would do to the table.
    Rehearse(Box<Command>),
    /// Print the help text.
    Help,
    /// Print the version.
    Version,
}

impl Command {
    /// Whether it changes what is configured of services, destinations and timeouts, which a plan can have a part in.
    pub fn is_planned(&self) -> bool {
        matches!(
            self,
            Self::AddService(_)
                | Self::EditService(_)
                | Self::DeleteService(_)
                | Self::Clear
                | Self::AddDestination(..)
                | Self::EditDestination(..)
                | Self::DeleteDestination(..)
                | Self::SetTimeouts(_)
                | Self::AddMarkRule(_)
                | Self::DeleteMarkRules(_)
        )
    }
}

/// What to list, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// What to list.
    pub subject: Subject,
    /// Addresses and ports as numbers.
    pub numeric: bool,
    /// As JSON instead of a table.
    pub json: bool,
    /// Seconds until it is wanted again.
    pub again: Option<u32>,
}

/// What a listing is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Services and their destinations.
    Services {
        /// One service only.
        only: Option<ServiceKey>,
        /// The columns.
        format: Format,
        /// Sorted, not in the director's order.
        sorted: bool,
        /// Numbers in full.
        exact: bool,
    },
    /// Connections.
    Connections {
        /// With persistence engines' data.
        engine_data: bool,
    },
    /// The timeouts.
    Timeouts,
    /// The sync daemons.
    Daemons,
}

/// The columns of a listing of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Forwarding method, weight, connections.
    Plain,
    /// Counters.
    Stats,
    /// Rates.
    Rate,
    /// Thresholds.
    Thresholds,
    /// Weight and persistence templates.
    PersistentConn,
    /// The plain columns and the tunnel.
    TunnelInfo,
}
