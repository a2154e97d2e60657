//! What every provider answers, as cases: each is run against the real one, and against those that stand in for one in
//! simulations.
//!
//! # Invariants
//! * A case says what is asked, and every answer, refusals included. Nobody is told which provider it asks.
//! * After each answer all that a provider shows agrees: its lists, the looks at one machine, whether it runs.
//! * Nothing here waits for a time.
//!
//! # Not here
//! The providers: the local one on real machines (`director/tests/provider`), that of rollouts
//! (`director/src/rollout/tests/sim`) and that of the simulation (`tests/src/sim`). What is in a machine or on a disk.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};

use super::{
    DiskView, EndpointRequest, MachineRequest, MachineSize, MachineView, Power, Provider,
    ProviderError, SetAside,
};

const MIB: u64 = 1024 * 1024;

/// What is other than usual about a machine that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// It has more memory.
    Larger,
    /// It has this address.
    At(Address),
    /// It is to be in a zone that there is not.
    Astray,
}

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// That of a machine.
    Machine(u32),
    /// That of an endpoint.
    Endpoint(u32),
    /// The network's own.
    Gateway,
    /// One of another network.
    Foreign,
}

/// What is asked. Machines, disks, endpoints and names under which machines are kept have numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Makes an incarnation of a machine.
    Create(u32, u32),
    /// The same, with something other than usual.
    CreateOdd(u32, u32, Odd),
    /// Deletes a machine.
    Delete(u32),
    /// Looks at a machine.
    Look(u32),
    /// Powers a machine off.
    Stop(u32),
    /// Powers a machine on.
    Start(u32),
    /// Restarts a machine.
    Reboot(u32),
    /// Gives an incarnation of a machine other settings.
    Place(u32, u32),
    /// Keeps an incarnation of a machine under a name.
    SetAside(u32, u32, u32),
    /// Looks at what is kept under a name.
    LookKept(u32),
    /// Removes what is kept under a name.
    DeleteKept(u32),
    /// Makes a disk of so many bytes.
    CreateDisk(u32, u64),
    /// Makes a disk so many bytes large.
    GrowDisk(u32, u64),
    /// Looks at a disk.
    LookDisk(u32),
    /// Destroys a disk.
    DeleteDisk(u32),
    /// Gives a machine a disk.
    Attach(u32, u32),
    /// Takes a disk from a machine.
    Detach(u32, u32),
    /// Has an endpoint answer at an address, with so many backends.
    Endpoint(u32, Address, u8),
    /// Looks at an endpoint.
    LookEndpoint(u32),
    /// Removes an endpoint.
    DeleteEndpoint(u32),
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is so now.
    Done,
    /// There is nothing of that name.
    Nothing,
    /// This incarnation runs, and was started so often.
    Runs(u32, u64),
    /// This incarnation is off, and was started so often.
    Off(u32, u64),
    /// This incarnation was not made to its end.
    Half(u32),
    /// This incarnation of a machine is kept.
    Kept(u32, u32),
    /// The disk has so many bytes, and this machine has it.
    Disk(u64, Option<u32>),
    /// The machine has the disk.
    Attached,
    /// The endpoint answers, with so many backends.
    Serves(usize),
    /// It can never work.
    Invalid,
    /// There is no machine, or no disk, to do that with.
    NotFound(&'static str),
    /// Something else is there.
    Conflict,
    /// This machine has the disk.
    DiskHeld(u32),
    /// This machine uses the disk.
    DiskBusy(u32),
    /// Another refusal.
    Other,
}

impl Answer {
    /// Who has to act when it is answered so.
    fn class(self) -> Option<ErrorClass> {
        match self {
            Self::Invalid | Self::NotFound(_) | Self::Conflict | Self::DiskHeld(_) => {
                Some(ErrorClass::Operator)
            }
            Self::DiskBusy(_) => Some(ErrorClass::Retry),
            _ => None,
        }
    }
}

/// What happens in a case.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// The provider is asked, and answers so.
    Ask(Ask, Answer),
    /// A machine mounts a disk that it has.
    Mount(u32, u32),
    /// The making of a machine that is there was cut off, as far as anybody can see.
    CutOff(u32),
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// What happens, one after the other.
    pub acts: &'static [Act],
}

/// What a case needs beside the provider.
pub trait Site {
    /// The stemcell that machines are made from.
    fn stemcell(&self) -> PathBuf;
    /// Settings of a machine.
    fn settings(&self, machine: &MachineName, incarnation: Incarnation) -> Vec<u8>;
    /// Whether the provider gives machines that run other settings: not every platform has a way to do it.
    fn places_settings(&self) -> bool;
    /// A machine mounts a disk that it has at this device.
    fn mount(&mut self, machine: &MachineName, device: &Path);
    /// The making of a machine was cut off, as far as anybody can see.
    fn cut_off(&mut self, machine: &MachineName);
}

const fn ask(ask: Ask, answer: Answer) -> Act {
    Act::Ask(ask, answer)
}

/// All cases.
#[rustfmt::skip] // one act per line, so that a missing one shows
pub const CASES: &[Case] = &[
    Case {
        name: "a_machine_is_made_once",
        acts: &[
            ask(Ask::Look(0), Answer::Nothing),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Create(0, 2), Answer::Conflict),
            ask(Ask::CreateOdd(0, 1, Odd::Larger), Answer::Conflict),
            ask(Ask::CreateOdd(0, 1, Odd::At(Address::Machine(3))), Answer::Conflict),
            ask(Ask::Look(0), Answer::Runs(1, 1)),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::Look(0), Answer::Nothing),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::Create(0, 2), Answer::Runs(2, 1)),
            ask(Ask::Create(0, 1), Answer::Conflict),
            ask(Ask::Look(0), Answer::Runs(2, 1)),
        ],
    },
    Case {
        name: "what_can_never_be_made_leaves_nothing",
        acts: &[
            ask(Ask::CreateOdd(0, 1, Odd::At(Address::Gateway)), Answer::Invalid),
            ask(Ask::CreateOdd(0, 1, Odd::At(Address::Foreign)), Answer::Invalid),
            ask(Ask::CreateOdd(0, 1, Odd::Astray), Answer::Invalid),
            ask(Ask::Look(0), Answer::Nothing),
            ask(Ask::Endpoint(0, Address::Gateway, 1), Answer::Invalid),
            ask(Ask::Endpoint(0, Address::Foreign, 1), Answer::Invalid),
            ask(Ask::LookEndpoint(0), Answer::Nothing),
            ask(Ask::CreateDisk(0, 0), Answer::Invalid),
            ask(Ask::CreateDisk(0, 64 * MIB + 1), Answer::Invalid),
            ask(Ask::LookDisk(0), Answer::Nothing),
        ],
    },
    Case {
        name: "what_is_not_there_is_not_found_or_gone",
        acts: &[
            ask(Ask::Stop(0), Answer::NotFound("machine")),
            ask(Ask::Start(0), Answer::NotFound("machine")),
            ask(Ask::Reboot(0), Answer::NotFound("machine")),
            ask(Ask::Place(0, 1), Answer::NotFound("machine")),
            ask(Ask::SetAside(0, 1, 0), Answer::NotFound("machine")),
            ask(Ask::Attach(0, 0), Answer::NotFound("machine")),
            ask(Ask::Detach(0, 0), Answer::Done),
            ask(Ask::GrowDisk(0, 64 * MIB), Answer::NotFound("disk")),
            ask(Ask::DeleteDisk(0), Answer::Done),
            ask(Ask::DeleteKept(0), Answer::Done),
            ask(Ask::DeleteEndpoint(0), Answer::Done),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::Attach(0, 0), Answer::NotFound("machine")),
            ask(Ask::LookDisk(0), Answer::Disk(64 * MIB, None)),
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Attach(0, 1), Answer::NotFound("disk")),
        ],
    },
    Case {
        name: "an_address_is_one_machines_or_one_endpoints",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::CreateOdd(1, 1, Odd::At(Address::Machine(0))), Answer::Conflict),
            ask(Ask::Look(1), Answer::Nothing),
            ask(Ask::Endpoint(0, Address::Machine(0), 1), Answer::Conflict),
            ask(Ask::LookEndpoint(0), Answer::Nothing),
            ask(Ask::Endpoint(0, Address::Endpoint(0), 1), Answer::Serves(1)),
            ask(Ask::CreateOdd(1, 1, Odd::At(Address::Endpoint(0))), Answer::Conflict),
            ask(Ask::Endpoint(1, Address::Endpoint(0), 1), Answer::Conflict),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::CreateOdd(1, 1, Odd::At(Address::Machine(0))), Answer::Runs(1, 1)),
            ask(Ask::DeleteEndpoint(0), Answer::Done),
            ask(Ask::Endpoint(1, Address::Endpoint(0), 1), Answer::Serves(1)),
        ],
    },
    Case {
        name: "an_endpoint_has_the_last_backends_and_the_last_address",
        acts: &[
            ask(Ask::Endpoint(0, Address::Endpoint(0), 2), Answer::Serves(2)),
            ask(Ask::Endpoint(0, Address::Endpoint(0), 2), Answer::Serves(2)),
            ask(Ask::Endpoint(0, Address::Endpoint(0), 0), Answer::Serves(0)),
            ask(Ask::LookEndpoint(0), Answer::Serves(0)),
            ask(Ask::Endpoint(0, Address::Endpoint(1), 1), Answer::Serves(1)),
            ask(Ask::Endpoint(1, Address::Endpoint(0), 1), Answer::Serves(1)),
            ask(Ask::DeleteEndpoint(0), Answer::Done),
            ask(Ask::LookEndpoint(0), Answer::Nothing),
            ask(Ask::LookEndpoint(1), Answer::Serves(1)),
            ask(Ask::DeleteEndpoint(0), Answer::Done),
        ],
    },
    Case {
        name: "each_start_counts_and_what_is_off_stays_off",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Stop(0), Answer::Off(1, 1)),
            ask(Ask::Stop(0), Answer::Off(1, 1)),
            ask(Ask::Create(0, 1), Answer::Off(1, 1)),
            ask(Ask::Create(0, 2), Answer::Conflict),
            ask(Ask::Look(0), Answer::Off(1, 1)),
            ask(Ask::Start(0), Answer::Runs(1, 2)),
            ask(Ask::Start(0), Answer::Runs(1, 2)),
            ask(Ask::Reboot(0), Answer::Runs(1, 3)),
            ask(Ask::Create(0, 1), Answer::Runs(1, 3)),
            ask(Ask::Stop(0), Answer::Off(1, 3)),
            ask(Ask::Reboot(0), Answer::Runs(1, 4)),
            ask(Ask::Look(0), Answer::Runs(1, 4)),
        ],
    },
    Case {
        name: "what_is_half_made_is_made_anew_or_deleted",
        acts: &[
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            Act::CutOff(0),
            ask(Ask::Look(0), Answer::Half(1)),
            ask(Ask::Stop(0), Answer::NotFound("machine")),
            ask(Ask::Start(0), Answer::NotFound("machine")),
            ask(Ask::Reboot(0), Answer::NotFound("machine")),
            ask(Ask::Place(0, 1), Answer::NotFound("machine")),
            ask(Ask::SetAside(0, 1, 0), Answer::NotFound("machine")),
            ask(Ask::Attach(0, 0), Answer::NotFound("machine")),
            ask(Ask::CreateOdd(1, 1, Odd::At(Address::Machine(0))), Answer::Conflict),
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            Act::CutOff(0),
            ask(Ask::Create(0, 2), Answer::Runs(2, 1)),
            Act::CutOff(0),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::Look(0), Answer::Nothing),
        ],
    },
    Case {
        name: "a_disk_does_not_shrink",
        acts: &[
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::CreateDisk(0, 128 * MIB), Answer::Conflict),
            ask(Ask::GrowDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::GrowDisk(0, 128 * MIB), Answer::Disk(128 * MIB, None)),
            ask(Ask::GrowDisk(0, 128 * MIB), Answer::Disk(128 * MIB, None)),
            ask(Ask::GrowDisk(0, 64 * MIB), Answer::Invalid),
            ask(Ask::GrowDisk(0, 128 * MIB + 1), Answer::Invalid),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, None)),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Conflict),
            ask(Ask::CreateDisk(0, 128 * MIB), Answer::Disk(128 * MIB, None)),
            ask(Ask::DeleteDisk(0), Answer::Done),
            ask(Ask::LookDisk(0), Answer::Nothing),
        ],
    },
    Case {
        name: "a_disk_is_one_machines",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Create(1, 1), Answer::Runs(1, 1)),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::CreateDisk(1, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::Attach(0, 0), Answer::Attached),
            ask(Ask::Attach(0, 0), Answer::Attached),
            ask(Ask::Attach(0, 1), Answer::Attached),
            ask(Ask::Attach(1, 0), Answer::DiskHeld(0)),
            ask(Ask::DeleteDisk(0), Answer::DiskHeld(0)),
            ask(Ask::Detach(1, 0), Answer::Done),
            ask(Ask::LookDisk(0), Answer::Disk(64 * MIB, Some(0))),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, Some(0))),
            ask(Ask::GrowDisk(0, 128 * MIB), Answer::Disk(128 * MIB, Some(0))),
            ask(Ask::Reboot(0), Answer::Runs(1, 2)),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, Some(0))),
            ask(Ask::Detach(0, 0), Answer::Done),
            ask(Ask::Detach(0, 0), Answer::Done),
            ask(Ask::Attach(1, 0), Answer::Attached),
            ask(Ask::Delete(1), Answer::Done),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, None)),
            ask(Ask::LookDisk(1), Answer::Disk(64 * MIB, Some(0))),
            ask(Ask::DeleteDisk(0), Answer::Done),
            ask(Ask::Attach(0, 0), Answer::NotFound("disk")),
        ],
    },
    Case {
        name: "a_disk_that_is_mounted_stays_while_its_machine_runs",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::Attach(0, 0), Answer::Attached),
            Act::Mount(0, 0),
            ask(Ask::Detach(0, 0), Answer::DiskBusy(0)),
            ask(Ask::GrowDisk(0, 128 * MIB), Answer::Disk(128 * MIB, Some(0))),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, Some(0))),
            ask(Ask::Stop(0), Answer::Off(1, 1)),
            ask(Ask::Detach(0, 0), Answer::Done),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, None)),
            ask(Ask::Attach(0, 0), Answer::Attached),
            ask(Ask::Start(0), Answer::Runs(1, 2)),
            Act::Mount(0, 0),
            ask(Ask::Detach(0, 0), Answer::DiskBusy(0)),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::LookDisk(0), Answer::Disk(128 * MIB, None)),
        ],
    },
    Case {
        name: "what_is_set_aside_is_off_and_counts_for_nothing",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::CreateDisk(0, 64 * MIB), Answer::Disk(64 * MIB, None)),
            ask(Ask::Attach(0, 0), Answer::Attached),
            ask(Ask::SetAside(0, 1, 0), Answer::Conflict),
            ask(Ask::Stop(0), Answer::Off(1, 1)),
            ask(Ask::SetAside(0, 2, 0), Answer::Conflict),
            ask(Ask::LookKept(0), Answer::Nothing),
            ask(Ask::Look(0), Answer::Off(1, 1)),
            ask(Ask::SetAside(0, 1, 0), Answer::Kept(0, 1)),
            ask(Ask::SetAside(0, 1, 0), Answer::Kept(0, 1)),
            ask(Ask::Look(0), Answer::Nothing),
            ask(Ask::LookDisk(0), Answer::Disk(64 * MIB, None)),
            ask(Ask::Start(0), Answer::NotFound("machine")),
            ask(Ask::SetAside(0, 1, 1), Answer::NotFound("machine")),
            ask(Ask::Create(0, 2), Answer::Runs(2, 1)),
            ask(Ask::SetAside(0, 1, 0), Answer::Kept(0, 1)),
            ask(Ask::Stop(0), Answer::Off(2, 1)),
            ask(Ask::SetAside(0, 2, 0), Answer::Conflict),
            ask(Ask::Delete(0), Answer::Done),
            ask(Ask::LookKept(0), Answer::Kept(0, 1)),
            ask(Ask::DeleteKept(0), Answer::Done),
            ask(Ask::LookKept(0), Answer::Nothing),
            ask(Ask::DeleteKept(0), Answer::Done),
        ],
    },
    Case {
        name: "settings_are_for_one_incarnation_that_runs",
        acts: &[
            ask(Ask::Create(0, 1), Answer::Runs(1, 1)),
            ask(Ask::Place(0, 1), Answer::Done),
            ask(Ask::Place(0, 2), Answer::Conflict),
            ask(Ask::Stop(0), Answer::Off(1, 1)),
            ask(Ask::Place(0, 1), Answer::Conflict),
        ],
    },
];

/// Runs one case with a provider that has nothing; what was other than it says.
pub async fn run(case: &Case, provider: &dyn Provider, site: &mut dyn Site) -> Vec<String> {
    let mut asked = Asked {
        provider,
        site,
        devices: BTreeMap::new(),
    };
    let mut faults = Vec::new();
    for act in case.acts {
        match *act {
            Act::Ask(ask, want) => {
                let mut want = want;
                if matches!(ask, Ask::Place(..)) && !asked.site.places_settings() {
                    want = Answer::Nothing; // whatever there is
                }
                let said = asked.ask(ask).await;
                let found = match &said {
                    Ok(answer) => *answer,
                    Err(error) => refusal(error),
                };
                if found != want {
                    faults.push(format!("{}: {ask:?}: {said:?} and not {want:?}", case.name));
                }
                if let Err(error) = &said
                    && Some(error.class()) != found.class()
                {
                    faults.push(format!("{}: {ask:?}: {:?}", case.name, error.class()));
                }
            }
            Act::Mount(machine, disk) => {
                let device = asked.devices[&(machine, disk)].clone();
                asked.site.mount(&machine_name(machine), &device);
            }
            Act::CutOff(machine) => asked.site.cut_off(&machine_name(machine)),
        }
        let disagreed = match asked.disagrees().await {
            Ok(disagreed) => disagreed,
            Err(error) => vec![error.to_string()],
        };
        let disagreed = disagreed.into_iter();
        faults.extend(disagreed.map(|what| format!("{}: after {act:?}: {what}", case.name)));
    }
    faults
}

struct Asked<'a> {
    provider: &'a dyn Provider,
    site: &'a mut dyn Site,
    /// Where machines find the disks that they were given.
    devices: BTreeMap<(u32, u32), PathBuf>,
}

impl Asked<'_> {
    async fn ask(&mut self, ask: Ask) -> Result<Answer, ProviderError> {
        let provider = self.provider;
        let answer = match ask {
            Ask::Create(machine, incarnation) => {
                let request = self.request(machine, incarnation, None);
                seen(&provider.create_machine(request).await?)
            }
            Ask::CreateOdd(machine, incarnation, odd) => {
                let request = self.request(machine, incarnation, Some(odd));
                seen(&provider.create_machine(request).await?)
            }
            Ask::Delete(machine) => {
                provider.delete_machine(&machine_name(machine)).await?;
                Answer::Done
            }
            Ask::Look(machine) => {
                let view = provider.machine(&machine_name(machine)).await?;
                view.as_ref().map_or(Answer::Nothing, seen)
            }
            Ask::Stop(machine) => {
                let name = machine_name(machine);
                seen(&provider.stop_machine(&name, Duration::ZERO).await?)
            }
            Ask::Start(machine) => seen(&provider.start_machine(&machine_name(machine)).await?),
            Ask::Reboot(machine) => {
                let name = machine_name(machine);
                seen(&provider.reboot_machine(&name, Duration::ZERO).await?)
            }
            Ask::Place(machine, incarnation) => {
                let (name, of) = (machine_name(machine), Incarnation(incarnation));
                let settings = self.site.settings(&name, of);
                match provider.place_settings(&name, of, settings).await? {
                    true => Answer::Done,
                    false => Answer::Nothing,
                }
            }
            Ask::SetAside(..) | Ask::LookKept(_) | Ask::DeleteKept(_) => {
                return self.ask_kept(ask).await;
            }
            Ask::Endpoint(..) | Ask::LookEndpoint(_) | Ask::DeleteEndpoint(_) => {
                return self.ask_endpoint(ask).await;
            }
            _ => return self.ask_disk(ask).await,
        };
        Ok(answer)
    }

    async fn ask_kept(&self, ask: Ask) -> Result<Answer, ProviderError> {
        let provider = self.provider;
        Ok(match ask {
            Ask::SetAside(machine, incarnation, kept) => {
                let request = SetAside {
                    machine: machine_name(machine),
                    incarnation: Incarnation(incarnation),
                    kept: kept_name(kept),
                    notes: BTreeMap::from([("why".to_owned(), "it hangs".to_owned())]),
                };
                let view = provider.set_aside(request).await?;
                view.map_or(Answer::Nothing, |view| {
                    Answer::Kept(number(view.machine.as_str()), view.incarnation.0)
                })
            }
            Ask::LookKept(kept) => {
                let views = provider.kept_machines().await?;
                let found = views.into_iter().find(|view| view.name == kept_name(kept));
                found.map_or(Answer::Nothing, |view| {
                    Answer::Kept(number(view.machine.as_str()), view.incarnation.0)
                })
            }
            Ask::DeleteKept(kept) => {
                provider.delete_kept(&kept_name(kept)).await?;
                Answer::Done
            }
            _ => Answer::Other,
        })
    }

    async fn ask_disk(&mut self, ask: Ask) -> Result<Answer, ProviderError> {
        let provider = self.provider;
        Ok(match ask {
            Ask::CreateDisk(disk, bytes) => {
                sized(&provider.create_disk(&disk_name(disk), bytes).await?)
            }
            Ask::GrowDisk(disk, bytes) => {
                sized(&provider.grow_disk(&disk_name(disk), bytes).await?)
            }
            Ask::LookDisk(disk) => {
                let views = provider.disks().await?;
                let found = views.iter().find(|view| view.name == disk_name(disk));
                found.map_or(Answer::Nothing, sized)
            }
            Ask::DeleteDisk(disk) => {
                provider.delete_disk(&disk_name(disk)).await?;
                Answer::Done
            }
            Ask::Attach(machine, disk) => {
                let (name, of) = (machine_name(machine), disk_name(disk));
                let device = provider.attach_disk(&name, &of).await?.device;
                // Where it is does not change, and no other disk is there.
                let others = self
                    .devices
                    .iter()
                    .filter(|(at, _)| **at != (machine, disk));
                let mut others = others.filter(|((of, _), _)| *of == machine);
                let taken = others.any(|(_, other)| *other == device);
                let before = self.devices.insert((machine, disk), device.clone());
                match !taken && before.is_none_or(|before| before == device) {
                    true => Answer::Attached,
                    false => Answer::Other,
                }
            }
            Ask::Detach(machine, disk) => {
                let (name, of) = (machine_name(machine), disk_name(disk));
                provider.detach_disk(&name, &of).await?;
                Answer::Done
            }
            _ => Answer::Other,
        })
    }

    async fn ask_endpoint(&self, ask: Ask) -> Result<Answer, ProviderError> {
        let provider = self.provider;
        let serves = |found: &super::EndpointView, address: Option<Ipv4Addr>| {
            let there = address.is_none_or(|address| found.address == address);
            match found.running && there {
                true => Answer::Serves(found.backends.len()),
                false => Answer::Other,
            }
        };
        Ok(match ask {
            Ask::Endpoint(endpoint, address, backends) => {
                let address = self.address(address);
                let backend = |last| SocketAddr::from(([192, 0, 2, last], 6443));
                let request = EndpointRequest {
                    cluster: cluster_name(endpoint),
                    address,
                    port: 6443,
                    backends: (1..=backends).map(backend).collect(),
                };
                serves(&provider.ensure_endpoint(request).await?, Some(address))
            }
            Ask::LookEndpoint(endpoint) => {
                let views = provider.endpoints().await?;
                let found = views
                    .iter()
                    .find(|view| view.cluster == cluster_name(endpoint));
                found.map_or(Answer::Nothing, |found| serves(found, None))
            }
            Ask::DeleteEndpoint(endpoint) => {
                provider.delete_endpoint(&cluster_name(endpoint)).await?;
                Answer::Done
            }
            _ => Answer::Other,
        })
    }

    fn address(&self, of: Address) -> Ipv4Addr {
        let network = self.provider.network();
        let own = |at: u32| Ipv4Addr::from(u32::from(network.cidr.network()) + at);
        match of {
            Address::Machine(machine) => own(10 + machine),
            Address::Endpoint(endpoint) => own(100 + endpoint),
            Address::Gateway => network.gateway,
            Address::Foreign => Ipv4Addr::new(192, 0, 2, 1),
        }
    }

    fn request(&self, machine: u32, incarnation: u32, odd: Option<Odd>) -> MachineRequest {
        let (name, incarnation) = (machine_name(machine), Incarnation(incarnation));
        let mut request = MachineRequest {
            hostname: valid(name.node_name(incarnation)),
            settings: self.site.settings(&name, incarnation),
            name,
            incarnation,
            stemcell: self.site.stemcell(),
            size: MachineSize {
                cpu_millis: 1_500,
                memory_bytes: 256 * MIB,
                disk_bytes: 64 * MIB,
            },
            zone: None,
            address: self.address(Address::Machine(machine)),
            tags: BTreeMap::from([("cluster".to_owned(), "test".to_owned())]),
        };
        match odd {
            Some(Odd::Larger) => request.size.memory_bytes *= 2,
            Some(Odd::At(address)) => request.address = self.address(address),
            Some(Odd::Astray) => request.zone = Some(valid(ZoneName::new("nowhere"))),
            None => {}
        }
        request
    }

    /// What is shown in two ways that do not agree.
    async fn disagrees(&self) -> Result<Vec<String>, ProviderError> {
        let provider = self.provider;
        let mut faults = Vec::new();
        let views = provider.machines().await?;
        for view in &views {
            let alone = provider.machine(&view.name).await?;
            if alone.as_ref() != Some(view) {
                faults.push(format!("{view:?} of the list is {alone:?}"));
            }
            let another = Incarnation(view.incarnation.0 + 1);
            for (of, want) in [(view.incarnation, Some(view.power)), (another, None)] {
                let power = provider.power(&view.name, of).await?.power;
                if power != want {
                    faults.push(format!("{} {of} is {power:?} and not {want:?}", view.name));
                }
            }
            if view.tags.get("cluster").is_none_or(|tag| tag != "test") {
                faults.push(format!("{} has lost its tags", view.name));
            }
        }
        let names = |view: &MachineView| view.name.clone();
        let named: std::collections::BTreeSet<MachineName> = views.iter().map(names).collect();
        if named.len() != views.len() {
            faults.push(format!("machines of the same name: {views:?}"));
        }
        for absent in (0..2)
            .map(machine_name)
            .filter(|name| !named.contains(name))
        {
            let power = provider.power(&absent, Incarnation::FIRST).await?.power;
            if power.is_some() {
                faults.push(format!("{absent} is not there, and {power:?}"));
            }
        }
        for disk in provider.disks().await? {
            if disk
                .attached_to
                .as_ref()
                .is_some_and(|holder| !named.contains(holder))
            {
                faults.push(format!("{disk:?} is held by nobody"));
            }
        }
        for kept in provider.kept_machines().await? {
            if named.contains(&kept.name) || kept.notes.is_empty() {
                faults.push(format!("{kept:?} is a machine, or lost its notes"));
            }
            let power = provider.power(&kept.name, kept.incarnation).await?.power;
            if power.is_some() {
                faults.push(format!("{} is kept, and {power:?}", kept.name));
            }
        }
        Ok(faults)
    }
}

fn seen(view: &MachineView) -> Answer {
    match view.power {
        _ if !view.complete => Answer::Half(view.incarnation.0),
        Power::Running => Answer::Runs(view.incarnation.0, view.boots),
        Power::Stopped => Answer::Off(view.incarnation.0, view.boots),
    }
}

fn sized(view: &DiskView) -> Answer {
    let holder = view.attached_to.as_ref();
    Answer::Disk(view.bytes, holder.map(|holder| number(holder.as_str())))
}

fn refusal(error: &ProviderError) -> Answer {
    match error {
        ProviderError::Invalid { .. } => Answer::Invalid,
        ProviderError::NotFound { kind, .. } => Answer::NotFound(kind),
        ProviderError::Conflict { .. } => Answer::Conflict,
        ProviderError::DiskHeld { holder, .. } => Answer::DiskHeld(number(holder.as_str())),
        ProviderError::DiskBusy { machine, .. } => Answer::DiskBusy(number(machine.as_str())),
        _ => Answer::Other,
    }
}

fn machine_name(number: u32) -> MachineName {
    valid(MachineName::new(format!("m{number}")))
}

fn kept_name(number: u32) -> MachineName {
    valid(MachineName::new(format!("kept-{number}")))
}

fn disk_name(number: u32) -> DiskName {
    valid(DiskName::new(format!("d{number}")))
}

fn cluster_name(number: u32) -> ClusterName {
    valid(ClusterName::new(format!("c{number}")))
}

/// The number in a name.
fn number(name: &str) -> u32 {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    valid(digits.parse())
}

fn valid<T, E: std::fmt::Debug>(name: Result<T, E>) -> T {
    name.expect("a name of a case is valid")
}
