"""A volume driver for a real Cinder in tests: every volume and snapshot is a sparse file, attached as `local`."""
import os
import subprocess
import time

from oslo_config import cfg

from cinder import interface
from cinder.volume import configuration, driver

OPTIONS = [cfg.StrOpt("files_path"), cfg.IntOpt("files_gib_shift", default=30)]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class FileVolumeDriver(driver.VolumeDriver):
    VERSION = "1.0"
    CI_WIKI_NAME = "none"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)

    @staticmethod
    def get_driver_options():
        return OPTIONS

    def path(self, thing):
        return os.path.join(self.configuration.files_path, thing["name"])

    def do_setup(self, context):
        os.makedirs(self.configuration.files_path, exist_ok=True)

    def check_for_setup_error(self):
        pass

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": self.configuration.volume_backend_name,
            "vendor_name": "tests", "driver_version": self.VERSION, "storage_protocol": "local",
            "reserved_percentage": 0, "total_capacity_gb": 100000, "free_capacity_gb": 100000,
            "QoS_support": False, "multiattach": True, "thin_provisioning_support": False,
        }

    def copy(self, source, target):
        """Until it has taken as long as the file `clone-seconds` beside the volumes says by then."""
        began = time.monotonic()
        subprocess.run(["cp", "--sparse=always", source, target], check=True)
        while time.monotonic() - began < self.clone_seconds():
            time.sleep(0.1)

    def clone_seconds(self):
        try:
            with open(os.path.join(os.path.dirname(self.configuration.files_path), "clone-seconds")) as file:
                return float(file.read() or 0)
        except FileNotFoundError:
            return 0

    def lengthen(self, path, gib):
        with open(path, "ab") as file:
            file.truncate(int(gib) << self.configuration.files_gib_shift)

    def remove(self, path):
        if os.path.exists(path):
            os.unlink(path)

    def create_volume(self, volume):
        self.lengthen(self.path(volume), volume["size"])

    def delete_volume(self, volume):
        self.remove(self.path(volume))

    def extend_volume(self, volume, new_size):
        self.lengthen(self.path(volume), new_size)

    def create_snapshot(self, snapshot):
        self.copy(self.path(snapshot.volume), self.path(snapshot))

    def delete_snapshot(self, snapshot):
        self.remove(self.path(snapshot))

    def create_volume_from_snapshot(self, volume, snapshot):
        self.copy(self.path(snapshot), self.path(volume))
        self.lengthen(self.path(volume), volume["size"])

    def create_cloned_volume(self, volume, source):
        self.copy(self.path(source), self.path(volume))
        self.lengthen(self.path(volume), volume["size"])

    def copy_image_to_volume(self, context, volume, image_service, image_id, disable_sparse=False):
        raise NotImplementedError()

    def copy_volume_to_image(self, context, volume, image_service, image_meta):
        raise NotImplementedError()

    def ensure_export(self, context, volume):
        pass

    def create_export(self, context, volume, connector):
        pass

    def remove_export(self, context, volume):
        pass

    def initialize_connection(self, volume, connector, **kwargs):
        return {"driver_volume_type": "local", "data": {"device_path": self.path(volume)}}

    def terminate_connection(self, volume, connector, **kwargs):
        pass
