-- The id of an instance is chosen by its caller: it is unique in a project, and another project may use the same.
-- DropForeignKey
ALTER TABLE "groups" DROP CONSTRAINT "groups_instance_id_fkey";

-- DropIndex
DROP INDEX "groups_instance_id_key";

-- AlterTable
ALTER TABLE "instances" DROP CONSTRAINT "instances_pkey",
ADD CONSTRAINT "instances_pkey" PRIMARY KEY ("project_id", "id");

-- CreateIndex
CREATE UNIQUE INDEX "groups_project_id_instance_id_key" ON "groups"("project_id", "instance_id");

-- AddForeignKey
ALTER TABLE "groups" ADD CONSTRAINT "groups_project_id_instance_id_fkey" FOREIGN KEY ("project_id", "instance_id") REFERENCES "instances"("project_id", "id") ON DELETE RESTRICT ON UPDATE CASCADE;

