"""What a real server and a real site share: kits and enrolments, the bundle of code, processes, the audit log."""

from popmi_core.audit import AuditLog, verify_log
from popmi_core.deployment.bundle import bundle_files, code_hash
from popmi_core.deployment.enrolment import Enrolment, SiteKit, fingerprint, read_kit
from popmi_core.deployment.supervise import Process, Supervisor

__all__ = [
    "AuditLog",
    "Enrolment",
    "Process",
    "SiteKit",
    "Supervisor",
    "bundle_files",
    "code_hash",
    "fingerprint",
    "read_kit",
    "verify_log",
]
