//go:build acceptance

package v3

import (
	"testing"

	"github.com/gophercloud/gophercloud/acceptance/clients"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/openstack/compute/v2/servers"
	th "github.com/gophercloud/gophercloud/testhelper"
)

// TestAttachmentsWithoutCompute is TestVolumeAttachments for a server that no compute service has made.
func TestAttachmentsWithoutCompute(t *testing.T) {
	client, err := clients.NewBlockStorageV3Client()
	th.AssertNoErr(t, err)
	client.Microversion = "3.27"
	volume, err := CreateVolume(t, client)
	th.AssertNoErr(t, err)
	defer DeleteVolume(t, client, volume)
	server := &servers.Server{ID: "6f2c2b0e-6a2c-4a0b-8a54-0d3f6f7b9a10"}
	th.AssertNoErr(t, CreateVolumeAttachment(t, client, volume, server))
	attached, err := volumes.Get(client, volume.ID).Extract()
	th.AssertNoErr(t, err)
	th.AssertEquals(t, "in-use", attached.Status)
	DeleteVolumeAttachment(t, client, attached)
}
