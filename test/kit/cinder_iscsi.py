"""A volume driver for a real Cinder in tests: the files of cinder_files are LUNs of a tgtd, one target for each, which lets in the initiator of the connector alone, by CHAP."""
import subprocess

from oslo_config import cfg

import cinder_files
from cinder import exception, interface
from cinder.volume import configuration

OPTIONS = [cfg.StrOpt("tgt_portal")]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class TgtVolumeDriver(cinder_files.FileVolumeDriver):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)

    def _update_volume_stats(self):
        super()._update_volume_stats()
        self._stats["storage_protocol"] = "iSCSI"

    def tid(self, volume):
        return int(volume["id"].replace("-", "")[:6], 16) + 1

    def admin(self, mode, operation, volume, *more, check=True):
        command = ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", operation]
        if volume is not None:
            command += ["--tid", str(self.tid(volume))]
        subprocess.run(command + list(more), check=check, capture_output=True)

    def create_export(self, context, volume, connector):
        target = "iqn.2010-10.org.openstack:" + volume["name"]
        user, password = "u" + volume["id"][:8], "canary-" + volume["id"][:8]
        self.admin("target", "delete", volume, "--force", check=False)
        self.admin("account", "delete", None, "--user", user, check=False)
        self.admin("target", "new", volume, "-T", target)
        self.admin("logicalunit", "new", volume, "--lun", "1", "-b", self.path(volume))
        self.admin("account", "new", None, "--user", user, "--password", password)
        self.admin("account", "bind", volume, "--user", user)
        return {
            "provider_location": "%s,1 %s 1" % (self.configuration.tgt_portal, target),
            "provider_auth": "CHAP %s %s" % (user, password),
        }

    def validate_connector(self, connector):
        if "initiator" not in connector:
            raise exception.InvalidConnectorException(missing="initiator")

    def initialize_connection(self, volume, connector, **kwargs):
        self.admin("target", "bind", volume, "-Q", connector["initiator"], check=False)
        _, target, lun = volume["provider_location"].split(" ")
        method, user, password = volume["provider_auth"].split(" ")
        return {
            "driver_volume_type": "iscsi",
            "data": {
                "target_discovered": False, "target_portal": self.configuration.tgt_portal, "target_iqn": target,
                "target_lun": int(lun), "volume_id": volume["id"], "auth_method": method, "auth_username": user,
                "auth_password": password, "discard": False,
            },
        }

    def terminate_connection(self, volume, connector, **kwargs):
        if connector and "initiator" in connector:
            self.admin("target", "unbind", volume, "-Q", connector["initiator"], check=False)

    def remove_export(self, context, volume):
        self.admin("target", "delete", volume, "--force", check=False)
