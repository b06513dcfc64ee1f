"""Which DICOM attributes tell who somebody is: a table, and which of its rows refuse a file.

The attributes are those that the Basic Application Level Confidentiality Profile (DICOM PS3.15 2024b, table E.1-1) has
removed or emptied and that name or describe a person, a case or a place. Dates, descriptions, characteristics and
device numbers, which the profile removes as well, are told but do not refuse a file: by themselves they name nobody,
and nothing of a file but its pixels is used. UIDs are not looked at: the profile replaces them, but only who holds the
archive can resolve one.
"""

from __future__ import annotations

BURNED_IN, PRIVATE, OTHER_NAMES = "BurnedInAnnotation", "private attributes", "another person's name"

_REFUSED = """
person: PatientName PatientBirthName PatientMotherBirthName OtherPatientNames ResponsiblePerson ReferringPhysicianName
person: ConsultingPhysicianName PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName
person: RequestingPhysician OrderEnteredBy ScheduledPerformingPhysicianName HumanPerformerName ContentCreatorName
person: VerifyingObserverName PersonName NamesOfIntendedRecipientsOfResults ReviewerName CameraOwnerName
number: PatientID OtherPatientIDs IssuerOfPatientID AccessionNumber StudyID AdmissionID ServiceEpisodeID
number: InsurancePlanIdentification MedicalRecordLocator PlacerOrderNumberImagingServiceRequest RequestedProcedureID
number: FillerOrderNumberImagingServiceRequest ScheduledProcedureStepID PerformedProcedureStepID SpecimenIdentifier
number: SpecimenAccessionNumber ContainerIdentifier SlideIdentifier BarcodeValue
contact: PatientAddress PatientTelephoneNumbers PatientTelecomInformation CountryOfResidence RegionOfResidence
contact: PersonAddress PersonTelephoneNumbers PersonTelecomInformation ReferringPhysicianAddress
contact: ReferringPhysicianTelephoneNumbers OrderCallbackPhoneNumber OrderCallbackTelecomInformation
contact: OrderEntererLocation CurrentPatientLocation PatientInstitutionResidence
life: PatientBirthDate PatientBirthTime Occupation MilitaryRank BranchOfService EthnicGroup PatientReligiousPreference
place: InstitutionName InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence ResponsibleOrganization
place: PerformedLocation GPSLatitude GPSLongitude
free text: PatientComments ImageComments FrameComments StudyComments VisitComments IdentifyingComments TextComments
free text: AdditionalPatientHistory RequestedProcedureComments ImagingServiceRequestComments ReasonForStudy LabelText
free text: CommentsOnThePerformedProcedureStep
former values: OriginalAttributesSequence
"""
_TOLD = """
date: StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime InstanceCreationDate DateOfSecondaryCapture
date: PerformedProcedureStepStartDate
characteristic: PatientAge PatientSex PatientSize PatientWeight PregnancyStatus SmokingStatus
description: StudyDescription SeriesDescription ProtocolName RequestedProcedureDescription DerivationDescription
description: PerformedProcedureStepDescription AdmittingDiagnosesDescription AcquisitionComments
device: DeviceSerialNumber StationName DetectorID PlateID GantryID LensSerialNumber
overlay: OverlayData
"""
# Actions Z and D of the profile: emptied, or filled with a dummy.
_DUMMIES = """
PatientName PatientID PatientBirthDate AccessionNumber StudyID ReferringPhysicianName ConsultingPhysicianName
OperatorsName ContentCreatorName VerifyingObserverName PersonName ReviewerName InstitutionName InstitutionCodeSequence
PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest SpecimenIdentifier ContainerIdentifier
BarcodeValue LabelText
"""


def _kinds(text: str) -> dict[str, str]:
    lines = [line.split(": ") for line in text.strip().splitlines()]
    return {keyword: kind for kind, keywords in lines for keyword in keywords.split()}


REFUSED_KINDS = {**_kinds(_REFUSED), BURNED_IN: "burned-in text", PRIVATE: "private", OTHER_NAMES: "person"}
"""Name -> kind of what must not be in a file: attributes by keyword, and three that are no single attribute."""

TOLD_KINDS = _kinds(_TOLD)
"""Keyword -> kind of what is told only."""

MAY_BE_DUMMY = frozenset(_DUMMIES.split())
"""What may be filled where a file says PatientIdentityRemoved = YES: it is then taken for a dummy."""
