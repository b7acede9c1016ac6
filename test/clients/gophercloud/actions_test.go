//go:build acceptance

package extensions

import (
	"testing"

	"github.com/gophercloud/gophercloud/acceptance/clients"
	blockstorage "github.com/gophercloud/gophercloud/acceptance/openstack/blockstorage/v2"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/v2/volumes"
	"github.com/gophercloud/gophercloud/openstack/compute/v2/servers"
	th "github.com/gophercloud/gophercloud/testhelper"
)

// TestActionsWithoutCompute is TestVolumeActionsAttachCreateDestroy for a server that no compute service has made.
func TestActionsWithoutCompute(t *testing.T) {
	client, err := clients.NewBlockStorageV2Client()
	th.AssertNoErr(t, err)
	volume, err := blockstorage.CreateVolume(t, client)
	th.AssertNoErr(t, err)
	defer blockstorage.DeleteVolume(t, client, volume)
	server := &servers.Server{ID: "6f2c2b0e-6a2c-4a0b-8a54-0d3f6f7b9a11"}
	th.AssertNoErr(t, CreateVolumeAttach(t, client, volume, server))
	attached, err := volumes.Get(client, volume.ID).Extract()
	th.AssertNoErr(t, err)
	DeleteVolumeAttach(t, client, attached)
}
